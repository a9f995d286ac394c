"""Reads the cluster of workers that the environment variable TF_CONFIG describes, and waits for them.

It needs no TensorFlow.
"""

import json
import logging
import re
import socket
import time
from collections.abc import Sequence
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape

WAIT_SECONDS = 600  # schedulers start workers one after the other
CONNECT_SECONDS = 20  # longest time to wait for the answer of an address
EXAMPLE = '{"cluster": {"worker": ["address:port", "address:port"]}, "task": {"type": "worker", "index": 0}}'


def read_cluster(text: str) -> list[str]:
    """Return the addresses of the workers in a TF_CONFIG.

    Args:
        text: Content of the environment variable TF_CONFIG, JSON or empty.

    Returns:
        The addresses as "host:port", that of this worker first. The list is empty if no cluster is configured.

    Raises:
        UserError: If the text is not a cluster of workers. The message says what is wrong.
    """
    everyone, own = read_rank(text)
    return sorted(everyone, key=lambda address: address != everyone[own])


def read_rank(text: str) -> tuple[list[str], int]:
    """Return the addresses of the workers in an order that is the same for all, and the place of this worker in it.

    The arguments and the errors are those of `read_cluster`. The chief comes first.
    """
    if not text.strip():
        return [], 0
    try:
        return _read_addresses(_parse(text))
    except UserError as error:
        shown = escape(text[:300])
        raise UserError(f"TF_CONFIG={shown} is not a list of workers: {error} Use {EXAMPLE}.") from None


def describe_cluster(addresses: Sequence[str], own: int | None) -> str:
    """Return the TF_CONFIG of some workers.

    Args:
        addresses: Addresses of all workers as "host:port", in the same order on every machine. The first is the chief.
        own: Place of this worker among them, counted from 0.

    Raises:
        UserError: If an address is invalid, or there is no such worker.
    """
    shown = f"workers={escape(','.join(addresses)[:300])}"
    if own is None:
        raise UserError(f"{shown} needs worker, the place of this machine in that list: 0 to {len(addresses) - 1}.")
    if not addresses:
        raise UserError(f"worker={own} needs workers, the addresses of all machines: --workers=a:2222,b:2222.")
    if own >= len(addresses):
        raise UserError(f"worker={own} is not in {shown}. Use 0 to {len(addresses) - 1}.")
    config = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": own}}
    try:
        _read_addresses(config)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    return json.dumps(config)


def _parse(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({str(error)[:100]}).") from None
    if not isinstance(config, dict):
        raise UserError("it is not an object.")
    return config


def _read_addresses(config: dict[str, Any]) -> tuple[list[str], int]:
    jobs, task = config.get("cluster") or {}, config.get("task") or {}
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        raise UserError("cluster and task must be objects.")
    if not jobs:
        return [], 0
    unknown = set(jobs) - {"chief", "worker"}
    if unknown:
        raise UserError(f"the cluster has a job '{escape(min(unknown))}'. Only chief and worker are supported.")
    for job, addresses in jobs.items():
        if not isinstance(addresses, list) or not addresses:
            raise UserError(f"the job {job} must list at least one address.")
        for address in addresses:
            _check_address(address)
    everyone = [address for _, addresses in sorted(jobs.items()) for address in addresses]
    twice = next((address for address in everyone if everyone.count(address) > 1), None)
    if twice:
        raise UserError(f"the address {escape(twice)} is listed twice. Each worker needs its own.")
    if len(jobs.get("chief", [])) > 1:
        raise UserError("there can be only one chief.")
    return everyone, everyone.index(_find_own(jobs, task))


def _check_address(address: Any) -> None:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not re.fullmatch(r"[!-~]+", host) or "/" in host or not re.fullmatch("[0-9]{1,5}", port):
        raise UserError(f"'{escape(str(address)[:100])}' is not an address of the form host:port.")
    if not 0 < int(port) < 65536:
        raise UserError(f"{address[:100]!r} has the port {int(port)}. Ports are from 1 to 65535.")


def _find_own(jobs: dict[str, list[str]], task: dict[str, Any]) -> str:
    job, index = task.get("type"), task.get("index")
    if not isinstance(job, str) or job not in jobs:
        raise UserError(f"task.type is '{escape(str(job)[:100])}', which is not a job of the cluster.")
    text = str(index)[:100]
    is_number = isinstance(index, int | str) and not isinstance(index, bool) and re.fullmatch("[0-9]{1,6}", text)
    if not is_number or int(text) >= len(jobs[job]):
        raise UserError(f"task.index is {escape(text)}. The job {job} has the indices 0 to {len(jobs[job]) - 1}.")
    return jobs[job][int(text)]


def await_workers(addresses: list[str], timeout_seconds: float = WAIT_SECONDS) -> None:
    """Wait until all addresses accept connections. The libraries would wait without saying for whom.

    Raises:
        UserError: If one of them still does not after some time.
    """
    deadline = time.monotonic() + timeout_seconds
    for address in addresses:
        host, _, port = address.rpartition(":")
        is_announced = False
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Worker {address} did not appear within {timeout_seconds} seconds ({error}). Check "
                        "that it is started and that no firewall blocks this machine."
                    ) from None
                if not is_announced:
                    logging.getLogger(__name__).warning("waiting for worker %s", address)
                    is_announced = True
                time.sleep(0.2)
