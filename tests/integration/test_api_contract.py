"""The API does what its description says: examples run, and whatever is sent, answers conform."""

import asyncio
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import schemathesis
from aiohttp import ClientSession
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.api.examples import EXAMPLES, filled
from server.api.problems import CODES
from tests.integration.contract_world import Contract
from tests.integration.contract_world import contract as contract

pytestmark = pytest.mark.services

CASES = int(os.environ.get("VESTIBULE_CONTRACT_CASES", "1"))
"""Of each operation and kind; `make soak` sends more."""
SEED = int(os.environ.get("VESTIBULE_CONTRACT_SEED", "1"))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def headers_of(contract: Contract, operation: str) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {contract.key}"}
    method, path = operation.split(" ")
    if "428" in contract.document["paths"][path][method.lower()]["responses"]:
        headers["If-Match"] = "*"
    return headers


async def test_every_operation_has_an_example_that_runs(contract: Contract) -> None:
    missing = sorted(set(contract.operations) - set(EXAMPLES))
    assert missing == [], f"{missing}: give these operations an example in server/api/examples.py"
    gone = sorted(set(EXAMPLES) - set(contract.operations))
    assert gone == [], "there are no such operations any more: take out their examples"
    wrong = []
    async with ClientSession() as session:
        for operation, example in EXAMPLES.items():
            method, path = operation.split(" ")
            async with session.request(
                method,
                contract.url + filled(path, example),
                params=example.query,
                json=example.body,
                headers=headers_of(contract, operation),
            ) as response:
                text = await response.text()
                expected = {CODES[example.refused].status} if example.refused else {200, 201}
                if response.status not in expected or (example.refused or "") not in text:
                    wrong.append(f"{operation}: {response.status} {text[:200]}")
    assert wrong == [], "\n".join(wrong)


async def test_whatever_is_sent_is_answered_as_described(contract: Contract) -> None:
    """No 5xx, no status, type, header or body that is not described; no nonsense is taken."""
    wrong = await asyncio.to_thread(run_all, contract)
    assert wrong == [], "\n".join(wrong)


def run_all(contract: Contract) -> list[str]:
    """Send cases of every operation, good and bad; return what was wrong, by operation."""
    schema = schemathesis.openapi.from_dict(contract.document)
    wrong: list[str] = []
    with requests.Session() as session:
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            for mode in schemathesis.GenerationMode:
                try:
                    sent(contract, session, operation, mode)()
                except FailureGroup as group:
                    wrong.append(f"{operation.label} ({mode.value}): {group}")
    return wrong


def sent(
    contract: Contract,
    session: requests.Session,
    operation: schemathesis.APIOperation[Any, Any, Any, Any],
    mode: schemathesis.GenerationMode,
) -> Callable[[], None]:
    """Return a property: what is generated, half of it within the example's names, conforms."""
    example = EXAMPLES.get(operation.label)
    headers = headers_of(contract, operation.label)
    cases = operation.as_strategy(generation_mode=mode)
    if example is not None and example.path:
        named = operation.as_strategy(generation_mode=mode, path_parameters=dict(example.path))
        cases = st.one_of(named, cases)
    if example is not None and example.query and mode is schemathesis.GenerationMode.POSITIVE:
        asked = operation.as_strategy(
            path_parameters=dict(example.path) or None, query=dict(example.query)
        )
        cases = st.one_of(asked, cases)

    @seed(SEED)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def conforms(case: Any) -> None:
        response = case.call(base_url=contract.url, session=session, headers=headers, timeout=30)
        negative = mode is schemathesis.GenerationMode.NEGATIVE and not lost(case, response)
        case.validate_response(
            response, checks=[*CHECKS, negative_data_rejection] if negative else CHECKS
        )

    return conforms


def lost(case: Any, response: Any) -> bool:
    """Whether a parameter was not sent: an empty list, say, has no form in an address."""
    sent = parse_qs(urlsplit(response.request.url).query, keep_blank_values=True)
    return not set(case.query or ()) <= set(sent)
