"""What every reader of ours has in common: each representation ends in one `decode`."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, TypeVar

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.base import MediaIO

from vllm_dynin.processors.codecs.base64_text import from_base64
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError, open_source

T = TypeVar("T")


class GuardedIO(MediaIO[T]):
    """A reader that takes a file's bytes and decodes them within our limits.

    Whatever way a medium arrives, `decode` is what opens it. A file that cannot be used is the
    client's mistake (`VLLMValidationError`, a 400); anything else that is raised is ours.

    Args:
        options: `media_io_kwargs` of the medium.
        decoded_budget: vLLM 0.33's `MediaDecodedBudget` of the request; None where there is none.

    Raises:
        VLLMValidationError: an option that the reader does not know.
    """

    medium = "medium"
    """What it reads, for messages."""
    options: tuple[str, ...] = ()
    """Names in `media_io_kwargs` that it knows."""

    def __init__(self, *, decoded_budget: Any = None, **options: Any) -> None:
        super().__init__()
        self._decoded_budget = decoded_budget
        if unknown := sorted(options.keys() - set(self.options)):
            raise VLLMValidationError(
                f"media_io_kwargs of {self.medium}: {', '.join(unknown)} is not known; "
                f"known are: {', '.join(self.options) or 'none'}",
                parameter="media_io_kwargs",
            )

    @abstractmethod
    def decode(self, data: bytes) -> T:
        """The medium in a file's bytes.

        Raises:
            MediaError: it is none, is damaged, or is over a limit.
        """

    def get_max_bytes(self) -> int:
        """Bytes that are downloaded at most."""
        return DEFAULT_LIMITS.max_bytes

    def load_bytes(self, data: bytes) -> T:
        """Decode a file.

        Raises:
            VLLMValidationError: it cannot be used; the message says why and what to send.
        """
        try:
            DEFAULT_LIMITS.check("max_bytes", len(data), f"the size of the {self.medium} in bytes")
            return self.decode(data)
        except MediaError as error:
            raise VLLMValidationError(str(error)) from error

    def load_base64(self, media_type: str, data: str) -> T:
        """Decode a file written as base64; see `load_bytes`."""
        try:
            file = from_base64(data)
        except MediaError as error:
            raise VLLMValidationError(str(error)) from error
        return self.load_bytes(file)

    def load_file(self, filepath: Path) -> T:
        """Decode a file that the operator lets clients name; see `load_bytes`."""
        try:
            with open_source(filepath) as stream:
                file = stream.read()
        except MediaError as error:
            raise VLLMValidationError(str(error)) from error
        return self.load_bytes(file)

    def charge(self, decoded_bytes: int) -> None:
        """Count decoded bytes against what one request may have decoded (vLLM 0.33).

        Raises:
            MediaError: the request has used up its budget.
        """
        if self._decoded_budget is None:
            return
        try:
            self._decoded_budget.charge(decoded_bytes)
        except ValueError as error:
            raise MediaError(f"{error} Send fewer or smaller media.") from error
