# The menu. Every recipe calls `asearch` or a tool of the environment; nothing lives only here.

python := env("PYTHON", "python3")
constraints := env("CONSTRAINTS", "constraints-cpu.txt")
bin := ".venv/bin"

# list the recipes
default:
    @just --list --unsorted

# make .venv from the project's files (again only after they changed)
setup:
    @PYTHON={{python}} CONSTRAINTS={{constraints}} sh infra/setup.sh

# install Chromium for the tests of the page, where it is missing and we may
browser:
    @sh infra/browser.sh

# start broker and actors, train, show the live screen; attaches to a run that is live
up *args: setup
    @{{bin}}/asearch up {{args}}

# stop live runs; leaves no process
down *args: setup
    @{{bin}}/asearch down {{args}}

# every actor with its state
status *args: setup
    @{{bin}}/asearch status {{args}}

# train a recipe and report, e.g. `just train toy --seed 1 --json`
train *args: setup
    @{{bin}}/asearch train {{args}}

# run the tests (under 12 minutes on 2 cores)
test *args: setup browser
    {{bin}}/pytest -m "not slow and not sglang" -n 2 --dist loadfile --no-loadscope-reorder {{args}}

# the long levels too (under 60 minutes on 2 cores)
test-all *args: setup browser
    {{bin}}/pytest -m "not sglang" {{args}}

# real SGLang on CPU, in an environment of its own (under 15 minutes on 2 cores after downloads; SGLANG_CACHE=DIR keeps it)
test-sglang *args: setup
    @PYTHON={{python}} sh infra/sglang/setup.sh
    {{bin}}/pytest -m "sglang and not slow" tests/sglang tests/engines {{args}}

# format, lint, types, layers
check: setup
    {{bin}}/ruff format --check .
    {{bin}}/ruff check .
    {{bin}}/basedpyright
    {{bin}}/lint-imports
    {{bin}}/pytest -q tests/schemas/test_schema_documents.py

# a benchmark by name, e.g. `just bench async --json`
bench *args: setup
    @{{bin}}/asearch bench {{args}}

# kill, stop and restart processes of a real training run, e.g. `just chaos --faults 100 --seed 1 --json`
chaos *args: setup
    @{{bin}}/python -m tests.chaos {{args}}

# simulate runs in virtual time with crashes, stops and outages, e.g. `just sim --seeds 500 --json`
sim *args: setup
    @{{bin}}/python -m tests.sim {{args}}

# plant known bugs one by one and show which level catches each, e.g. `just planted --only refill-twice`
planted *args: setup
    @{{bin}}/python -m tests.planted {{args}}
