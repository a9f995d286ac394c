"""Concurrent requests in batches: each gets its own rows, whatever is computed with it."""

import threading
from concurrent.futures import Future, wait

import numpy as np
import pytest

from efficientnet_tf.serving.batching import Batcher, QueueFullError


class Computer:
    """Doubles its input, notes the sizes of the batches, and can be held."""

    def __init__(self):
        self.sizes = []
        self.started, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def hold(self, batcher):
        """Keep the batcher busy with one image until `may_go_on` is set. Return the image's future."""
        self.may_go_on.clear()
        future = batcher.submit(images(0))
        assert self.started.wait(10)
        return future

    def __call__(self, pixels):
        self.sizes.append(len(pixels))
        self.started.set()
        assert self.may_go_on.wait(10)
        if (pixels < 0).any():
            raise ArithmeticError("negative")
        return 2 * pixels[:, 0, 0]


def images(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


@pytest.fixture
def make_batcher():
    batchers = []

    def make(compute, most_images=4, delay_seconds=0.0, longest_queue=100, **settings):
        batchers.append(Batcher(compute, most_images, delay_seconds, longest_queue, **settings))
        return batchers[-1]

    yield make
    for batcher in batchers:
        batcher.close()


def test_each_request_gets_its_own_rows(make_batcher):
    computer = Computer()
    batcher = make_batcher(computer)
    first = computer.hold(batcher)
    futures = [batcher.submit(images(*values)) for values in ((1,), (2, 3), (4,), (5, 6, 7), (8,))]
    computer.may_go_on.set()
    answers = [future.result(10)[:, 0].tolist() for future in (first, *futures)]
    assert answers == [[0], [2], [4, 6], [8], [10, 12, 14], [16]]
    assert computer.sizes == [1, 4, 4]  # what waited was computed together, up to four at a time


def test_an_image_waits_for_others_for_the_delay_only(make_batcher):
    computer = Computer()
    batcher = make_batcher(computer, most_images=2, delay_seconds=60)
    futures = [batcher.submit(images(value)) for value in (1, 2)]
    assert [future.result(10)[0, 0] for future in futures] == [2, 4] and computer.sizes == [2]
    alone = make_batcher(Computer(), most_images=2, delay_seconds=0.01)
    assert alone.submit(images(3)).result(10)[0, 0] == 6


def test_without_batches_every_image_is_computed_alone(make_batcher):
    computer = Computer()
    batcher = make_batcher(computer, most_images=1, delay_seconds=60)
    futures = [batcher.submit(images(value)) for value in range(5)]
    assert [future.result(10)[0, 0] for future in futures] == [0, 2, 4, 6, 8] and computer.sizes == [1] * 5


def test_a_failure_reaches_the_requests_of_its_batch_only(make_batcher):
    computer = Computer()
    batcher = make_batcher(computer, most_images=1)
    bad, good = batcher.submit(images(-1)), batcher.submit(images(1))
    with pytest.raises(ArithmeticError):
        bad.result(10)
    assert good.result(10)[0, 0] == 2


def test_a_full_queue_refuses_and_a_cancelled_request_is_not_computed(make_batcher):
    computer = Computer()
    batcher = make_batcher(computer, most_images=2, longest_queue=2)
    computer.hold(batcher)
    cancelled, kept = batcher.submit(images(1)), batcher.submit(images(2))
    assert batcher.waiting() == 2
    with pytest.raises(QueueFullError):
        batcher.submit(images(3))
    assert cancelled.cancel()
    computer.may_go_on.set()
    assert kept.result(10)[0, 0] == 4 and computer.sizes == [1, 1]


def test_batches_are_observed_and_closing_answers_what_waits(make_batcher):
    seen, computer = [], Computer()
    batcher = make_batcher(computer, observe=lambda images, seconds: seen.append((images, seconds >= 0)))
    computer.hold(batcher)
    future: Future = batcher.submit(images(1, 2))
    threading.Timer(0.05, computer.may_go_on.set).start()
    batcher.close()
    assert future.done() and seen == [(1, True), (2, True)]
    with pytest.raises(RuntimeError):
        batcher.submit(images(1))


def test_requests_of_many_threads(make_batcher):
    batcher = make_batcher(Computer(), most_images=8, delay_seconds=0.001, longest_queue=10_000)
    futures: dict[int, Future] = {}

    def submit(values):
        for value in values:
            futures[value] = batcher.submit(images(value))

    threads = [threading.Thread(target=submit, args=[range(start, 400, 8)]) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(futures.values(), 10)
    assert {value: future.result(0)[0, 0] for value, future in futures.items()} == {v: 2 * v for v in range(400)}


@pytest.mark.parametrize("count", [0, 5])
def test_wrong_number_of_images(make_batcher, count):
    with pytest.raises(ValueError, match="do not fit into a batch of 4"):
        make_batcher(Computer()).submit(images(*range(count)))
