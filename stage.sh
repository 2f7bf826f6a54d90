#!/bin/sh
# `sh stage.sh STAGE [ARGUMENT ...]`: the command of every stage in dvc.yaml. It runs `python -m tasks` with the active Python if that
# has the project's packages, and otherwise with the one in .venv, so that `dvc repro` needs no activated environment. Experiments of a
# queue run in a folder below the workspace, which DVC names DVC_ROOT.
for python in python .venv/bin/python "${DVC_ROOT:-.}/.venv/bin/python"; do
    if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("mediapipe") is None)' 2>/dev/null; then
        exec "$python" -m tasks "$@"
    fi
done
echo 'contrapposto: No Python here has the packages of this project. Run `make setup`, then `. .venv/bin/activate`.' >&2
exit 2
