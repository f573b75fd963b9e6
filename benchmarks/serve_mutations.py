"""Requests that are nearly right, in every way that hypothesis can think of: no answer may be an error of the server's,
or show how it is built. A real `homer serve` of a tiny model is asked; requests that the OpenAPI document allows
(schemathesis) and mutations of valid ones (`serve_mutants`) come in turns.

    python benchmarks/serve_mutations.py --requests 10000 --output results/serve/mutations.json

Results that are there already are gone on with, on a new server.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve_bodies import by_parameter, furnished
from serve_mutants import Mutant, mutants
from serve_process import ServerProcess, machine, tiny_model

BLOCK = 250  # requests between two looks at whether everything that they name is still there
TOLD = ("Traceback", 'File "', "site-packages", "homerlm/")
CONFORMANCE = [status_code_conformance, content_type_conformance, response_schema_conformance]
SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "max_prompt_tokens": 4000, "request_seconds": 60}


def faults(answer: httpx.Response) -> list[str]:
    """What is wrong with an answer to a request that may be wrong itself."""
    sent = f"{answer.request.url}{answer.request.content!r}"  # which an answer may quote
    found = [f"tells of {mark}" for mark in TOLD if mark in answer.text and mark not in sent]
    if answer.status_code >= 500:
        found.append(f"status {answer.status_code}")
    if "internal_error" in answer.text:
        found.append("an event of an internal error")
    if answer.status_code >= 400 and answer.request.method != "HEAD" and not _told_as_openai_does(answer):
        found.append("no error in OpenAI's shape")
    return found


def _undescribed(answer: httpx.Response, case: schemathesis.Case | None) -> list[str]:
    """In what an answer is none of those that the OpenAPI document has for its request."""
    try:
        if case is not None:
            case.validate_response(answer, checks=CONFORMANCE)
    except FailureGroup as group:
        return [f"{type(one).__name__}: {one.message[:300]}" for one in group.exceptions]
    return []


def _told_as_openai_does(answer: httpx.Response) -> bool:
    try:
        return set(answer.json()["error"]) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return answer.text == "Invalid HTTP request received."  # uvicorn's, of what is no HTTP


class Asking:
    """Sends requests to one server and keeps what it did."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.statuses: Counter[str] = Counter()
        self.routes: dict[str, Counter[str]] = defaultdict(Counter)
        self.failed: dict[str, dict[str, Any]] = {}

    @property
    def asked(self) -> int:
        return sum(self.statuses.values())

    def ask(self, mutant: Mutant, case: schemathesis.Case | None = None) -> None:
        """Raises `AssertionError` for an answer with a fault, or one that the document does not have for its case."""
        try:
            answer = self._http.send(mutant.request(self._http))
        except httpx.LocalProtocolError:
            reject()  # the client itself refuses to send it
        except httpx.TransportError as error:
            self._judge(mutant, 0, [f"no answer: {error}"])
        else:
            self._judge(mutant, answer.status_code, [*faults(answer), *_undescribed(answer, case)])

    def _judge(self, mutant: Mutant, status: int, found: list[str]) -> None:
        self.statuses[str(status)] += 1
        self.routes[mutant.route.partition("?")[0]][str(status)] += 1
        if found:
            place = f"{mutant.method} {mutant.route}: {', '.join(found)}"
            self.failed[place] = {
                "url": mutant.path[:300],
                "headers": mutant.headers,
                "body": repr(mutant.content[:1000]),
            }
            raise AssertionError(place)


def mutate(asking: Asking, known: dict[str, str], count: int, number: int) -> None:
    """Send so many mutations. Those that fail are made small by hypothesis."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=True,
    )
    @given(mutants(known))
    def every(mutant: Mutant) -> None:
        asking.ask(mutant)

    _tried(every)


def from_description(asking: Asking, document: dict[str, Any], known: dict[str, str], count: int, number: int) -> None:
    """Send so many requests that schemathesis makes of the OpenAPI document, right ones and wrong ones; most of them
    name what is there, unless they would remove it."""
    schema = schemathesis.openapi.from_dict(document)
    found: list[Any] = list(schema.get_all_operations())
    operations = [one.ok() for one in found]
    modes = list(GenerationMode)
    cases = st.one_of([one.as_strategy(generation_mode=mode) for one in operations for mode in modes])

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(cases, st.integers(0, 3))
    def every(case: schemathesis.Case, chance: int) -> None:
        if chance and case.method != "DELETE":
            case.path_parameters = {name: known.get(name, id) for name, id in case.path_parameters.items()}
        asking.ask(Mutant.of_case(case), case)

    _tried(every)


def _tried(test: Any) -> None:
    with suppress(AssertionError, ExceptionGroup):  # noted by who asks
        test()


def run(
    server: ServerProcess, requests: int, first_seed: int, block: int = BLOCK, seconds: float = float("inf")
) -> dict[str, Any]:
    """Half of the requests by either way, in blocks, or as many as there is time for."""
    with server.client() as http:
        sent, started, number = {"mutations": 0, "schemathesis": 0}, time.monotonic(), first_seed
        asking = Asking(http)
        document = http.get("/openapi.json").json()
        while sum(sent.values()) < requests and time.monotonic() - started < seconds:
            way = min(sent, key=lambda name: sent[name])
            count, before, known = min(block, requests - sum(sent.values())), asking.asked, furnished(http)
            if way == "mutations":
                mutate(asking, known, count, number)
            else:
                from_description(asking, document, by_parameter(known), count, number)
            sent[way] += asking.asked - before
            number += 1
        taken = round(time.monotonic() - started, 1)
    routes = {route: dict(sorted(counts.items())) for route, counts in sorted(asking.routes.items())}
    statuses = dict(sorted(asking.statuses.items()))
    found = {"seconds": taken, "next_seed": number, "sent": sent, "statuses": statuses}
    return {**found, "failed": asking.failed, "routes": routes}


def joined(before: Any, more: Any) -> Any:
    """Results of two runs: numbers are added, lists joined."""
    if isinstance(before, dict):
        return {name: joined(before.get(name), more.get(name)) for name in {**before, **more}}
    return more if before is None else before if more is None else before + more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Stop after so many, to go on later.")
    parser.add_argument("--output", type=Path, default=Path("results/serve/mutations.json"))
    options = parser.parse_args()
    before = json.loads(options.output.read_text())["found"] if options.output.exists() else {}
    requests = options.requests - sum(before.get("sent", {}).values())
    with TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder), tiny_model(Path(folder) / "model"), dtype="float32", **SETTINGS)
        try:
            found = run(server, requests, before.pop("next_seed", options.seed), seconds=60 * options.minutes)
            found["servers_that_died"] = int(not server.runs)
        finally:
            server.kill()
        log = server.log.read_text(errors="replace")
    found["log"] = [line for line in log.splitlines() if "request failed" in line or "Traceback" in line][:50]
    found = joined(before, found)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "seed": options.seed, "found": found}
    options.output.write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
