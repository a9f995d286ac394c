"""Finds image files in folders. Hidden files and what systems and editors leave behind are no images.

Imports no TensorFlow for local folders, so that a command can check its data at once.
"""

import collections
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.local_files import explain_reading
from efficientnet_tf.config.text import escape
from efficientnet_tf.data.image_formats import READABLE_SUFFIXES, find_kind
from efficientnet_tf.runtime.files import check_path, exists, is_folder, is_remote, list_folder

# Thumbnails, trash and settings of NAS systems, macOS, Windows and Linux, in lower case. Their pictures are copies.
_JUNK = frozenset(
    {
        *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx", "__pycache__"),
        *("$recycle.bin", "system volume information", "found.000", "lost+found", "network trash folder"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    }
)
_SNIFFED_FILES = 100  # of those without an ending, to bound the time on slow storage

_logger = logging.getLogger(__name__)


@dataclass
class Scan:
    """What a search through folders found.

    Attributes:
        images: Paths of the images. A broken link counts as an image, so that reading it fails with its name.
        left_out: How many files have each other ending, for example {".heic": 2}.
        odd: Paths of FIFOs, sockets and devices. Opening one could wait forever.
        links: Paths of links to a folder that contains the link, or that was read already.
        owners: (device, inode) of each folder that was read, and of those around it, and the name it was read for.
    """

    images: list[str] = field(default_factory=list)
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    odd: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    owners: dict[tuple[int, int], str | None] = field(default_factory=dict)
    _sniffed: int = 0

    def add_folder(self, folder: str, owner: str = "") -> list[str]:
        """Search a folder and those below it. Each real folder is read once, however many links lead to it.

        Args:
            folder: The folder, local or gs://.
            owner: What the folder belongs to, for example a class.

        Returns:
            The paths of its images, sorted.

        Raises:
            UserError: If a folder cannot be read, or belongs to another owner, too.
        """
        self._add_surroundings(folder)
        found, waiting = [], [folder]
        while waiting:
            path = waiting.pop()
            if not self._enter(path, owner, is_start=path == folder):
                continue
            folders = []
            for name, kind in list_entries(path):
                inside = os.path.join(path, name)
                if kind == "folder":
                    folders.append(inside)
                elif kind == "odd":
                    self.odd.append(inside)
                elif name.lower().endswith(READABLE_SUFFIXES):
                    found.append(inside)
                else:
                    self.left_out[self._describe_ending(inside)] += 1
            # The same order everywhere, because it decides under which of two names a folder is read.
            waiting += sorted(folders, key=lambda inside: (os.path.islink(inside), inside), reverse=True)
        self.images += sorted(found)
        return sorted(found)

    def _add_surroundings(self, folder):
        """Remember the folders that contain a folder: a link to one of them is a loop."""
        if is_remote(folder):
            return
        parent = os.path.dirname(os.path.realpath(folder))
        while True:
            status = os.stat(parent)
            self.owners.setdefault((status.st_dev, status.st_ino), None)
            if parent == os.path.dirname(parent):
                return
            parent = os.path.dirname(parent)

    def _enter(self, path, owner, is_start):
        """Return whether a folder has to be read, and remember it."""
        if is_remote(path):
            return True
        try:
            status = os.stat(path)
        except OSError as error:
            raise explain_reading(path, error) from None
        key = (status.st_dev, status.st_ino)
        other = self.owners.get(key)
        if key not in self.owners or (is_start and other is None):
            self.owners[key] = owner
            return True
        if other not in (None, owner):
            raise UserError(
                f"'{escape(path)}' leads to the same folder as one of the class '{escape(other)}', so its images "
                "would be in two classes. Remove the link."
            )
        self.links.append(path)
        return False

    def _describe_ending(self, path):
        """Return the ending of a file in lower case. Of a file without one, also whether it is an image."""
        ending = os.path.splitext(path)[1].lower()
        if ending or is_remote(path) or self._sniffed >= _SNIFFED_FILES:
            return escape(ending) or "without an ending"
        self._sniffed += 1
        try:
            with open(path, "rb") as file:
                kind = find_kind(file.read(16))
        except OSError:
            return "without an ending"
        return f"without an ending (content: {kind})" if kind else "without an ending"

    def remarks(self, where: str) -> list[str]:
        """Return sentences about what was left out. `where` names the searched place."""
        lines = []
        if self.left_out:
            endings = ", ".join(f"{number:,} {ending}" for ending, number in self.left_out.most_common(10))
            total = count(sum(self.left_out.values()), "file")
            lines.append(f"{where}: left out {total}: {endings}. Images end in {', '.join(READABLE_SUFFIXES)}.")
        if self.odd:
            what = count(len(self.odd), "FIFO, socket or device", "FIFOs, sockets or devices")
            lines.append(f"{where}: left out {what}: {show(self.odd)}.")
        if self.links:
            what = count(len(self.links), "link")
            lines.append(f"{where}: left out {what} to folders that are read already: {show(self.links)}.")
        return lines


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number and its noun: "1 file", "2 files"."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {many or one + 's'}"


def show(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list, escaped, and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(escape, names[:most])) + more


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or is left behind by a system or an editor."""
    return name.startswith(".") or name.lower() in _JUNK


def list_entries(path: str) -> Iterator[tuple[str, str]]:
    """Yield (name, kind) of what is in a folder, without junk. The kind is "folder", "file" or "odd".

    A link is what it points to. A broken link is a "file". Local entries need no system call of their own.

    Raises:
        UserError: If the folder cannot be read.
    """
    if is_remote(path):
        for name in list_folder(path):
            if name and not is_junk(name):  # The storage has no links, and asking for the kind takes time.
                is_file = name.lower().endswith(READABLE_SUFFIXES) or not is_folder(os.path.join(path, name))
                yield name, "file" if is_file else "folder"
        return
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not is_junk(entry.name):
                    yield entry.name, _find_kind(entry)
    except OSError as error:
        raise explain_reading(path, error) from None


def _find_kind(entry):
    if entry.is_file(follow_symlinks=False):
        return "file"
    try:
        if entry.is_dir():
            return "folder"
        is_regular = entry.is_file()
    except OSError:  # a link to itself
        return "file"
    is_broken_link = entry.is_symlink() and not os.path.exists(entry.path)
    return "file" if is_regular or is_broken_link else "odd"


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the image files that some paths name.

    Args:
        paths: Files, which are returned as they are, and folders, which are searched for images.

    Returns:
        The paths of the files, in the order of the arguments, sorted within each folder.

    Raises:
        UserError: If a path does not exist, or if a folder has no image.
    """
    found = []
    for path in paths:
        check_path("images", path)
        if not exists(path):
            raise UserError(f"{escape(path)}: no such file or folder")
        if not is_folder(path):
            found.append(path)
            continue
        scan = Scan()
        images = scan.add_folder(path)
        remarks = scan.remarks(escape(path))
        if not images:
            readable = ", ".join(READABLE_SUFFIXES)
            raise UserError(f"{escape(path)}: no image in this folder. Supported suffixes are {readable}.")
        for remark in remarks:
            _logger.warning("%s", remark)
        found += images
    return found
