"""What all commands share: one run per output folder, errors without a traceback, and a terminal that may go away."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class StandardError:
    """`sys.stderr`, as long as it is there. After that, progress bars and messages are dropped, and the run goes on.

    It goes away when a terminal is closed, and in `... 2>&1 | head`.
    """

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()


def keep_running_without_a_terminal() -> None:
    """From here on, an error while writing to standard error does not stop this process."""
    if sys.stderr is not None and not isinstance(sys.stderr, StandardError):
        sys.stderr = StandardError(sys.stderr)


@contextmanager
def errors_as_messages(stopped: str = "stopped") -> Iterator[None]:
    """Around a command: errors that a user can correct end it with their message alone. `stopped`: the message for Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        # What the console's encoding does not have is printed as a number, "\\xe9". Otherwise it would be an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    before = sys.stderr
    keep_running_without_a_terminal()
    try:
        yield
        sys.stdout.flush()  # now, so that an error is noticed here
    except BrokenPipeError:  # the reader of the output has ended (`... | head`)
        raise SystemExit(1) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise SystemExit(f"{error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"\n{stopped}") from None
    except RuntimeError as error:  # torch notices at any moment that a process has ended which reads data
        if not str(error).startswith("DataLoader worker"):
            raise
        raise SystemExit("a process that reads data was killed; the same command resumes") from None
    finally:
        sys.stderr = before
        try:
            sys.stdout.flush()
        except OSError:  # Python would try once more at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Make the folder, and refuse a second run in it: each would overwrite the files of the other.

    It is a lock of the operating system on the file `.lock`. It ends with the process, however the process ends.
    Raises OSError, with the folder.
    """
    folder, advice = Path(folder), "Choose another folder with --out."
    existed, lock = folder.exists(), folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error}. {advice}") from None
    with open(lock, "a") as file:
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:  # unlike `flock`, not inherited by child processes: none of them can keep it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):  # otherwise, this file system has no locks
                raise OSError(f"{folder}: another run is writing to this folder. Wait until it ends. {advice}") from None
        try:
            yield
        finally:
            if os.listdir(folder) == [".lock"] and sys.platform != "win32":  # the run ended before it wrote anything
                lock.unlink()
                if not existed:
                    folder.rmdir()
