"""Images that template chutes run in, as references to ones that exist publicly."""
