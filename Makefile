# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN    := .venv/bin
REF    ?= templates.vllm_chute:chute
TESTS_COMPILED ?= tests/unit/test_compiled.py tests/unit/test_gateway_differential.py tests/unit/test_gateway_relay.py \
	$(addprefix tests/integration/test_gateway_,failures.py relay.py splits.py)

.PHONY: demo test unit integration e2e lint format bench bench-footprint bench-gateway compiled test-compiled gpu-smoke \
	clean help

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml
	@echo "Installing chutes and what its tests need into .venv (two or three minutes) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint,bench]'
	@touch $@ .venv/demo

.venv/demo: pyproject.toml
	@echo "Installing chutes into .venv (about a minute) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

demo: .venv/demo ## deploy a small model and ask it a question
	@url=$$($(BIN)/chutes deploy --yes $(REF)) && \
	CHUTES_URL=$$url CHUTES_API_KEY=$$($(BIN)/chutes keys create --name demo-$$$$ 2>/dev/null) \
		$(BIN)/python examples/ask.py "What is the capital of France?"; \
	status=$$?; $(BIN)/chutes keys delete demo-$$$$ 2>/dev/null; \
	test $$status != 0 || echo "It is still running: $(BIN)/chutes ps, $(BIN)/chutes down"; exit $$status

test: lint unit integration test-compiled e2e ## everything that CI runs

# The source by the interpreter: a build that somebody left here must not change what is tested.
unit integration e2e: export CHUTES_COMPILED = 0

unit: .venv/installed ## seconds: pure parts
	$(BIN)/pytest tests/unit

integration: .venv/installed ## a minute or two: real processes, a synthetic engine
	$(BIN)/pytest tests/integration

e2e: .venv/installed ## minutes: real vLLM on the CPU, public clients
	$(BIN)/pytest tests/e2e tests/gpu

lint: .venv/installed ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compiled: .venv/installed ## machine code of the gateway's core, which then serves about twice as many requests
	$(BIN)/python -m chutes.compiled

test-compiled: .venv/installed ## a minute: what tells most about the core, once more with its machine code
	@$(BIN)/python -m chutes.compiled; status=$$?; \
	if test $$status = 3; then echo "The compiled core is not tested here."; exit 0; fi; \
	test $$status = 0 && CHUTES_COMPILED=1 $(BIN)/pytest $(TESTS_COMPILED)

bench-gateway: .venv/installed ## the gateway beside nginx, vllm-router, LiteLLM; --quick: make bench-gateway ARGS=--quick
	@$(BIN)/python -m chutes.compiled || echo "Measuring the interpreted core."
	$(BIN)/python -m benchmarks.gateway $(ARGS)

bench: .venv/installed ## how fast a model is: make bench MODEL=Qwen/Qwen3-8B ARGS="--rate 4"
	$(BIN)/python -m benchmarks run $(if $(MODEL),--model '$(MODEL)') $(ARGS)

bench-footprint: .venv/installed ## start-up times and idle memory, written to benchmarks/results/
	$(BIN)/python -m benchmarks.footprint

gpu-smoke: .venv/installed ## on a GPU machine: detects, plans, deploys, asks, measures, reports
	$(BIN)/chutes doctor
	$(BIN)/pytest tests/gpu
	$(BIN)/python -m benchmarks.gpu_smoke $(ARGS)

clean: ## remove what was made here; ~/.chutes stays
	rm -rf .venv .cache .pytest_cache .ruff_cache
