"""The whole life cycle once: `make trial`, or `make trial SHORT=1` with nets too small to learn anything.

In a copy of this project it starts the services, trains, delivers new pictures, waits for the retraining that they trigger,
compares challenger and champion, serves a model, generates samples, and stops the services. Every step prints its result; the
first failure ends the trial with exit code 1. With ENGINE=ray or ENGINE=prefect new pictures are extracted,
and generated ones sampled, in three slices.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))  # try this project, whether it is installed or not

from flows import private_server
from tasks.common import files
from tasks.config.params import load, set_values
from tasks.synthetic.stage import draw_all
from tests.support.prefect_api import flow_runs
from tests.support.project import copy_project
from tests.support.workspaces import write_params

INBOX = "data/raw"  # every folder in it is a part
FIRST, SECOND = "studio", "street"


class Trial:
    """The copy of the project, and the commands that a user types in it."""

    def __init__(self, root: Path, short: bool, engine: str = "local") -> None:
        self.root, self.short, self.began = root, short, time.monotonic()
        copy_project(root)
        if short:
            write_params(root)
        ports = {f"services.{name}_port": private_server.free_port() for name in ("prefect", "mlflow")}
        set_values(
            root / "params.yaml", {**ports, "retrain.watch_seconds": 2.0, "raw.parts": {FIRST: f"{INBOX}/{FIRST}"}}
        )
        if engine != "local":
            cut = {"kind": engine, "slices": 3, "stages": ["extract", "sample_pictures"]}
            set_values(root / "params.yaml", {f"engine.{key}": value for key, value in cut.items()})
        self.params = load(root / "params.yaml")
        api = f"http://127.0.0.1:{self.params.services.prefect_port}/api"
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PREFECT_API_URL": api, "PATH": binaries, "DO_NOT_TRACK": "true"}

    def say(self, sentence: str) -> None:
        """Print one line with the time since the start."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {sentence}", flush=True)

    def call(self, *command: str, code: int | None = 0) -> str:
        """Run a command that must exit with `code` (None: any); returns its output."""
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.root, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if code is not None and done.returncode != code:
            print(done.stdout)
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}, not {code}")
        return done.stdout

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 3600) -> Any:
        """Wait until `condition` returns something true, and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            time.sleep(1)
        raise SystemExit(f"not within {seconds:.0f} s: {what}")

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """The runs of a flow, the latest first."""
        return flow_runs(self.environment["PREFECT_API_URL"], flow)

    def deliver(self, name: str, seed: int, count: int) -> None:
        """Deliver a part: mannequins drawn from another seed, in sub-folders that are categories."""
        drawn = self.root / ".contrapposto" / name
        drawn.mkdir(parents=True)
        draw_all(drawn, seed, 128 if self.short else 224, count, workers=2)
        for path in drawn.rglob("*.json"):
            path.unlink()  # real pictures have no true joints
        (self.root / INBOX).mkdir(parents=True, exist_ok=True)
        drawn.rename(self.root / INBOX / name)

    def serve(self, alias: str) -> dict[str, Any]:
        """Export the models with this alias, serve them with MLflow, and return the answer to one request."""
        self.call("tasks", "export", alias)
        port = private_server.free_port()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"exports/{alias}/mlflow"]
        command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
        with open(self.root / ".contrapposto/serve.log", "w", encoding="utf-8") as log:
            served = subprocess.Popen(command, cwd=self.root, env=self.environment, stdout=log, stderr=log)
        try:
            self.until("the model answers", lambda: _get(f"http://127.0.0.1:{port}/health"), 300)
            query = {"inputs": [{"category": "run", "count": 2, "pose": {"left_wrist": [0.6, -1.2, 0.0]}}]}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", json.dumps(query).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=300) as response:
                samples: list[dict[str, Any]] = json.loads(response.read())["predictions"][0]
            return {"samples": len(samples), "wrist": samples[0]["landmarks"][15], "png": len(samples[0]["png"])}
        finally:
            served.terminate()
            served.wait(60)

    def run(self) -> None:
        """Run all steps."""
        self.deliver(FIRST, 0, 60 if self.short else 1000)
        self.say("first delivery of pictures is there")
        self.say(
            "up: " + ", ".join(line.split()[0] for line in self.call("flows", "up").splitlines() if "started" in line)
        )
        again = self.call("flows", "up")
        if again.count("is up") != 4:
            raise SystemExit(f"a second `up` did not find all services up:\n{again}")
        watched = self.call("prefect", "deployment", "run", "train-poses", "--watch", "--watch-interval", "2")
        self.say("prefect deployment run train-poses --watch: " + watched.strip().splitlines()[-1])
        first = files.read_json(self.root / "reports/promote/promote.json")
        self.say(f"promoted: {first['promote']} {' '.join(first['reasons'])}")
        self.deliver(SECOND, 1, 30 if self.short else 400)
        self.say("second delivery of pictures is there")
        self.until("a retraining starts by the event", lambda: self.runs("retrain"), 300)
        self.say(f"retrain was started by the event: {self.runs('retrain')[0]['name']}")
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.until("the retraining ends", lambda: self.runs("retrain")[0]["state"]["type"] in ends)
        state = self.runs("retrain")[0]["state"]
        parts = ", ".join(load(self.root / "params.yaml").raw.parts)
        self.say(f"retrain of the parts {parts} ended: {state['name']} {state['message'] or ''}")
        if state["type"] != "COMPLETED":
            raise SystemExit("the retraining did not complete")
        outcome = files.read_json(self.root / "reports/promote/promote.json")
        for row in outcome.get("model_comparison", {}).get("comparisons", []):
            if row["category"] == "all":
                self.say(
                    f"{row['model']}: challenger {row['challenger']:.4g}, champion {row['champion']:.4g}, difference "
                    f"{row['difference']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
                )
        self.say(f"promoted: {outcome['promote']} {' '.join(outcome['reasons'])}")
        # the short form has too few pictures for a verdict, and without one there is no champion
        alias = "champion" if first["promote"] or outcome["promote"] else "challenger"
        self.say(f"the {alias} is served: {self.serve(alias)}")
        changes = json.dumps({"generate": {"count": 12, "alias": alias, "steps": 4 if self.short else 18}})
        options = ("--param", f"changes={changes}", "--watch", "--watch-interval", "2")
        output = self.call("prefect", "deployment", "run", "generate", *options, code=None)
        made = self.root / "generated/generated.json"
        if made.is_file():
            self.say(f"generated: {files.read_json(made)}")
        else:
            self.say("generate: " + str(self.runs("generate")[0]["state"]["message"]))
            if not self.short:
                raise SystemExit(output)
        self.say("down: " + ", ".join(line.split()[0] for line in self.call("flows", "down").splitlines()))
        left = [p for p in psutil.process_iter(["cwd", "cmdline"]) if str(p.info["cwd"]).startswith(str(self.root))]
        if left:
            raise SystemExit(f"processes left: {[p.info['cmdline'] for p in left]}")
        self.say("no process is left")


def _get(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except OSError:
        return False


def main() -> int:
    """Run the trial in a folder of its own; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="tiny nets and few pictures: minutes")
    parser.add_argument("--engine", default="local", help="that extracts and samples: local, prefect or ray")
    parser.add_argument("--root", type=Path, help="where (default: a temporary folder, removed at the end)")
    options = parser.parse_args()
    place = options.root or Path(tempfile.mkdtemp(prefix="trial-"))
    trial = Trial(place / "contrapposto", options.short, options.engine)
    try:
        trial.run()
    finally:
        trial.call("flows", "down", code=None)
        if options.root is None:
            shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
