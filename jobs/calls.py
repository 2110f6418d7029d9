"""Calls to what keeps a store's files, through obstore: repeated while they may succeed, with errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.exceptions import NotFoundError as ObjectNotFoundError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from jobs.errors import NotFoundError, StoreUnavailableError, first_line

if TYPE_CHECKING:
    from obstore.store import RetryConfig

#: Tries of one call before the store counts as unreachable; local disks do not blink, so they get one.
_ATTEMPTS = 5

#: Of obstore's own retries, which come below ours: by default ten in three minutes, for each of our tries.
RETRY: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=60)}

_Answer = TypeVar("_Answer")


class _TransientError(Exception):
    """A call that may succeed when it is repeated."""


class Calls:
    """What can be asked of one ``backend``. Each raises StoreUnavailableError where it stays away or refuses."""

    def __init__(self, backend: Any, uri: str, *, local: bool) -> None:
        self._backend, self._uri, self._local = backend, uri, local

    def put_new(self, path: str, content: bytes) -> bool:
        """Write ``path`` unless it exists; True if this did, be it in a try whose answer was lost."""
        lost_answer = False

        def put() -> bool:
            nonlocal lost_answer
            try:
                self._ask(path, lambda: obstore.put(self._backend, path, content, mode="create", use_multipart=False))
                return True
            except AlreadyExistsError:
                return lost_answer and self.get(path) == content
            except _TransientError:
                lost_answer = True
                raise

        return self._repeat(put)

    def get(self, path: str) -> bytes:
        """The whole content. Raises NotFoundError."""
        return self._repeat(lambda: self._ask(path, lambda: bytes(obstore.get(self._backend, path).bytes())))

    def exists(self, path: str) -> bool:
        with contextlib.suppress(NotFoundError):
            self._repeat(lambda: self._ask(path, lambda: obstore.head(self._backend, path)))
            return True
        return False

    def delete(self, path: str) -> None:
        with contextlib.suppress(NotFoundError):
            self._repeat(lambda: self._ask(path, lambda: obstore.delete(self._backend, path)))

    def locate(self, path: str) -> str:
        """``path`` as a user writes it: an absolute file name or a URI."""
        return f"{self._uri.rstrip('/')}/{path}"

    def _ask(self, path: str, call: Callable[[], _Answer]) -> _Answer:
        try:
            return call()
        except AlreadyExistsError:
            raise
        except (ObjectNotFoundError, FileNotFoundError) as error:
            raise NotFoundError(f"{self.locate(path)} does not exist") from error
        except (BaseError, OSError) as error:
            raise _TransientError(first_line(error)) from error

    def _repeat(self, call: Callable[[], _Answer]) -> _Answer:
        retrying = Retrying(
            stop=stop_after_attempt(1 if self._local else _ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=5.0),
            retry=retry_if_exception_type(_TransientError),
            retry_error_callback=self._give_up,
        )
        return retrying(call)

    def _give_up(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        raise StoreUnavailableError(f"store {self._uri}: {error}") from error
