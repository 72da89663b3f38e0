"""What an object store may fail on, by names of ours: its own errors quote what it answered."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upath import UPath


class StoreError(Exception):
    """The object store did not do as asked; the text names the object, and quotes no answer."""


class StoreRefusedError(StoreError):
    """It never will: these credentials do not open the bucket, or there is none."""


class ObjectChangedError(StoreError):
    """The object is gone, or another one than it was."""


@contextmanager
def named_errors(path: UPath, gone: Callable[[str], Exception]) -> Iterator[None]:
    """Errors without what the store answered, which may show names of keys and signatures.

    Args:
        path: of the object, with what opens its bucket.
        gone: what is raised of a text if there is no such object.

    Raises:
        ObjectChangedError: it is another one than was asked for.
        StoreRefusedError: the store does not let us.
        StoreError: anything else.
    """
    from obstore.exceptions import (
        BaseError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    try:
        yield
    except FileNotFoundError:
        raise gone(f"{path}: there is no such object") from None
    except PreconditionError:
        raise ObjectChangedError(f"{path}: another object") from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise StoreRefusedError(f"{path}: access denied, or no such bucket") from None
    except BaseError as error:
        what = type(error).__name__.removesuffix("Error").lower()
        raise StoreError(f"{path}: the object store does not deliver ({what} error)") from None
