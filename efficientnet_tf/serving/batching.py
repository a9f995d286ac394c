"""Computes the images of concurrent requests together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np


class QueueFullError(Exception):
    """More images are waiting than the queue may hold."""


class _Item(NamedTuple):
    pixels: np.ndarray
    future: Future[np.ndarray]
    arrived: float


class Batcher:
    """Collects images of several threads into batches, and computes each batch on a thread of its own.

    A batch starts when it is full, or when its first image has waited for `delay_seconds`. Images that arrive while a
    batch is computed form the next one, so that under load batches grow without any delay.

    Args:
        compute: Function from pixels, float32 [N, H, W, C], to an array with N rows.
        most_images: Largest N, at least 1. With 1, every image is computed alone.
        delay_seconds: How long an image may wait for others.
        longest_queue: Number of images that may wait.
        observe: Called after each batch with its number of images and its duration in seconds.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        most_images: int,
        delay_seconds: float,
        longest_queue: int,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ):
        self.most_images = most_images
        self._compute = compute
        self._delay_seconds = delay_seconds if most_images > 1 else 0.0
        self._longest_queue = longest_queue
        self._observe = observe
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]:
        """Add images to the queue.

        Args:
            pixels: float32 [n, H, W, C] with n from 1 to `most_images`.

        Returns:
            A future of their rows of the result. If it is cancelled while the images wait, they are not computed.

        Raises:
            QueueFullError: If the queue has no room for them.
            RuntimeError: If the batcher is closed.
        """
        if not 1 <= len(pixels) <= self.most_images:
            raise ValueError(f"{len(pixels)} images do not fit into a batch of {self.most_images}.")
        item = _Item(pixels, Future(), time.monotonic())
        with self._changed:
            if self._closed:
                raise RuntimeError("The batcher is closed.")
            if self._count() + len(pixels) > self._longest_queue:
                raise QueueFullError
            self._items.append(item)
            self._changed.notify()
        return item.future

    def waiting(self) -> int:
        """Return the number of images that wait."""
        with self._changed:
            return self._count()

    def close(self) -> None:
        """Compute what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _count(self):
        return sum(len(item.pixels) for item in self._items)

    def _run(self):
        while batch := self._take():
            started = time.monotonic()
            try:
                results = self._compute(np.concatenate([item.pixels for item in batch]))
            except Exception as error:  # The requests get it. The next batch may work.
                for item in batch:
                    item.future.set_exception(error)
                continue
            ends = np.cumsum([len(item.pixels) for item in batch])
            for item, rows in zip(batch, np.split(results, ends[:-1]), strict=True):
                item.future.set_result(rows)
            self._observe(int(ends[-1]), time.monotonic() - started)

    def _take(self):
        """Wait for the next batch and return its items, or nothing when the batcher is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return []
                start = self._items[0].arrived + self._delay_seconds
                self._changed.wait_for(
                    lambda: self._closed or self._count() >= self.most_images, max(start - time.monotonic(), 0)
                )
                items, room = [], self.most_images
                while self._items and len(self._items[0].pixels) <= room:
                    item = self._items.popleft()
                    if item.future.set_running_or_notify_cancel():
                        items.append(item)
                        room -= len(item.pixels)
            if items:
                return items
