"""The image of diffusion chutes."""

# Published name: chutes/diffusion:0.34.0.po, in a registry of that platform.
# diffusers publishes this one for CUDA.
DIFFUSION = "diffusers/diffusers-pytorch-cuda:latest"
