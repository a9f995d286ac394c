"""Connects to a TPU, and turns each way in which that fails into one clear message.

TensorFlow waits for hours for an address where no TPU is. Each address is therefore tried first, with a time limit.
"""

import queue
import socket
import threading

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.cluster import CONNECT_SECONDS

NAMES = "Use 'local' on a TPU VM, the name of a Cloud TPU, or grpc://address:8470."
CHECKS = "Check that the TPU is running, that the address is right, and that no firewall blocks this machine."
# Messages for the errors of TensorFlow's resolver, by a part of their type and text.
ADVICE = {
    "provide a TPU Name": "no TPU is named here or in the environment (KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS, TPU_NAME, "
    "TPU_CONFIG). " + NAMES,
    "TPUs not found": "TensorFlow finds no TPU on this machine. Check that it is a TPU VM, and that no other "
    "TensorFlow is installed than that of pip install 'efficientnet_tf[tpu]'.",
    "URLError": "Google Cloud's metadata server, which knows the addresses of TPUs, does not answer. Run this on a VM "
    "in the TPU's project and zone, or use grpc://address:8470.",
    "Google API client": "the package cloud-tpu-client, which looks up the names of TPUs, is not installed. Run pip "
    "install 'efficientnet_tf[tpu]', or use grpc://address:8470.",
    "Credentials": "there are no credentials for Google Cloud. Run 'gcloud auth application-default login', or use "
    "grpc://address:8470.",
    "Could not lookup": "Google Cloud lists no TPU of this name in the project and zone of this VM. Compare with "
    "'gcloud compute tpus list', or use grpc://address:8470.",
    "not yet ready": "the TPU exists but is not ready. Wait until 'gcloud compute tpus list' says READY.",
}


def connect_tpu(name: str, timeout_seconds: float = CONNECT_SECONDS) -> tf.distribute.TPUStrategy:
    """Connect to a TPU and initialize it.

    Args:
        name: "local", the name of a Cloud TPU, or grpc://address:8470. An empty name is looked up in the environment.
        timeout_seconds: Longest time to wait for Google Cloud, and for each address.

    Returns:
        A strategy on all cores of the TPU.

    Raises:
        UserError: If the TPU cannot be used.
    """
    try:
        if name == "local":
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver("local")
        else:
            resolver, addresses = _resolve(name, timeout_seconds)
            for address in addresses:
                check_address(address, timeout_seconds)
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except UserError as error:
        raise UserError(f"tpu={escape(name)}: {error}") from None
    except Exception as error:  # the resolver raises a dozen types, some from packages that may not be installed
        received = f"{type(error).__name__}: {error}"
        advice = next((advice for part, advice in ADVICE.items() if part in received), f"there is no TPU. {NAMES}")
        first = escape(received.strip().partition("\n")[0][:200])
        raise UserError(f"tpu={escape(name)}: {advice} ({first})") from None
    return tf.distribute.TPUStrategy(resolver)


def _resolve(name, timeout_seconds):
    """Return TensorFlow's resolver of a TPU and the addresses of its hosts, or raise what the resolver raises."""
    answers = queue.SimpleQueue()

    def ask():
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
            answers.put((resolver, resolver.cluster_spec().job_tasks("worker")))
        except Exception as error:
            answers.put(error)

    # TensorFlow asks Google Cloud without a time limit. A daemon thread can be left behind.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_seconds)
    except queue.Empty:
        raise UserError(
            f"Google Cloud did not return the TPU's address within {timeout_seconds} seconds. Run this on a VM in the "
            "TPU's project and zone, or use grpc://address:8470."
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def check_address(address: str, timeout_seconds: float = CONNECT_SECONDS) -> None:
    """Check that a gRPC server answers at an address.

    Args:
        address: "host:port".
        timeout_seconds: Longest time to wait for the connection, and then for the server's answer.

    Raises:
        UserError: If no gRPC server answers.
    """
    import grpc

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"{address!r} is not an address. Use grpc://address:8470.")
    try:
        # gRPC tries again until its time is up and does not say why it fails. A plain connection fails at once.
        socket.create_connection((host, int(port)), timeout=timeout_seconds).close()
    except TimeoutError:
        raise UserError(f"{address} did not answer within {timeout_seconds} seconds. {CHECKS}") from None
    except OSError as error:
        raise UserError(f"{address} cannot be reached ({error}). {CHECKS}") from None
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_seconds)
        except grpc.FutureTimeoutError:
            raise UserError(f"{address} did not answer as a TPU within {timeout_seconds} seconds. {CHECKS}") from None
