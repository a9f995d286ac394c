"""TODO docstring (from distribute)."""

import queue
import socket
import threading

import tensorflow as tf

from efficientnet_tf.config.errors import UserError

CONNECT_SECONDS = 20
HTTP2_SETTINGS = bytes(
    [0, 0, 0, 4, 0, 0, 0, 0, 0]
)  # what both sides of HTTP/2, beneath gRPC, begin with (RFC 9113, 3.4)


TPU_NAMES = "give 'local' on a TPU VM, the name of a Cloud TPU, or grpc://address:8470"
# What the errors of TensorFlow's resolver hold, type and message, and what to do then.
TPU_ADVICE = {
    "provide a TPU Name": "no TPU is named, neither here nor by KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS, TPU_NAME or "
    "TPU_CONFIG: " + TPU_NAMES,
    "TPUs not found": "this TensorFlow finds no TPU there: is it a TPU VM, and is TensorFlow that of the tpu extra, "
    "pip install 'efficientnet_tf[tpu]', with no other one beside it?",
    "URLError": "a TPU's name needs Google Cloud's metadata server, which does not answer here: run this on a VM in "
    "the TPU's project and zone, or give grpc://address:8470",
    "Google API client": "a TPU's name needs the package cloud-tpu-client: pip install 'efficientnet_tf[tpu]', or give "
    "grpc://address:8470",
    "Credentials": "a TPU's name needs credentials for Google Cloud, and there are none: run 'gcloud auth "
    "application-default login', or give grpc://address:8470",
    "Could not lookup": "Google Cloud does not show a TPU of this name in this VM's project and zone: compare with "
    "'gcloud compute tpus list', or give grpc://address:8470",
    "not yet ready": "the TPU is there but not ready: wait until 'gcloud compute tpus list' says READY",
}


def connect_tpu(name):
    """Connect to a TPU. Each way in which that fails becomes one sentence."""
    try:
        if name == "local":
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver("local")
        else:
            resolver, addresses = _resolve_tpu(name)
            for address in addresses:
                _knock(address)
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except UserError as error:
        raise UserError(f"--tpu={name}: {error}") from None
    except Exception as error:  # the resolver raises a dozen types, some of packages that may not be installed
        told = f"{type(error).__name__}: {error}"
        advice = next(
            (advice for part, advice in TPU_ADVICE.items() if part in told), f"no TPU is reached: {TPU_NAMES}"
        )
        raise UserError(f"--tpu={name}: {advice} ({told.strip().splitlines()[0][:200]})") from None
    return tf.distribute.TPUStrategy(resolver)


def _resolve_tpu(name):
    """Return TensorFlow's resolver of a TPU and the addresses of its hosts, or raise what the resolver raises."""
    answer = queue.SimpleQueue()

    def ask():
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
            answer.put((resolver, resolver.cluster_spec().job_tasks("worker")))
        except Exception as error:
            answer.put(error)

    # TensorFlow asks Google Cloud without a limit of time: a thread can be left behind.
    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise UserError(
            f"Google Cloud has not told the TPU's address within {CONNECT_SECONDS} seconds: run this on a VM in the "
            "TPU's project and zone, or give grpc://address:8470"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


def _knock(address):
    """Raise UserError unless a gRPC server answers at "host:port": TensorFlow itself would wait for it without end."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"{address!r} is no address: give grpc://address:8470")
    check = "is the TPU running, is this its address, and does a firewall let this machine in?"
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HTTP2_SETTINGS)
            head = connection.recv(len(HTTP2_SETTINGS), socket.MSG_WAITALL)
    except TimeoutError:
        raise UserError(f"{address} has not answered within {CONNECT_SECONDS} seconds: {check}") from None
    except OSError as error:
        raise UserError(f"{address} cannot be reached ({error}): {check}") from None
    if head[3:4] != HTTP2_SETTINGS[3:4]:
        raise UserError(f"{address} answers, but not as a TPU does: {check}")
