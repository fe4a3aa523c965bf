"""Downloads a base from the hub, once: safetensors and text files, no pickles, no code."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.adapters.base.atomic_files import write_atomically
from graftwork.adapters.base.folder import SIDE_FILES
from graftwork.adapters.base.progress import Progress
from graftwork.adapters.errors import ConfigurationError, first_line
from graftwork.adapters.prompts.reading import read_json

if TYPE_CHECKING:
    from tqdm import tqdm


def from_hub(base: str, store: Path, progress: Progress) -> Path:
    """The local snapshot of a hub repository. Once it is complete the hub is never asked again.

    Raises:
        ConfigurationError: ``base`` is no hub id, the repository does not exist or is gated, or the hub is unreachable.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) or base.startswith("."):
        raise ConfigurationError(f"--base {base}: there is no such folder, and it is no hub id (owner/name) either.")
    note = store / "hub" / f"{base.replace('/', '--')}.json"
    known = Path(read_json(note).get("path", ""))
    if note.is_file() and known.is_dir():
        return known

    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    title = f"Fetching {base} from the hub"
    progress(title, None)
    try:
        snapshot = huggingface_hub.snapshot_download(
            base,
            allow_patterns=["*.safetensors", "*.safetensors.index.json", *SIDE_FILES],
            # Other layouts of the same weights, which nothing here reads.
            ignore_patterns=["*/*", "consolidated*"],
            tqdm_class=_hub_bar(title, progress),
        )
    except GatedRepoError as error:
        raise ConfigurationError(
            f"{base} is gated: accept its terms on the hub, then set HF_TOKEN to a token of yours and start again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigurationError(
            f"--base {base}: there is no such folder, and the hub has no such model (or HF_TOKEN may not see it)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(
            f"{base} is not here yet and the hub cannot be reached ({first_line(error)}). Go online once, "
            "or copy the model here and give its folder: --base FOLDER."
        ) from error
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps({"path": snapshot}))
    return Path(snapshot)


def _hub_bar(title: str, progress: Progress) -> type[tqdm]:
    """A progress bar for the hub's client that prints nothing and reports the fraction of bytes to ``progress``."""
    from tqdm import tqdm

    class HubBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": False, "file": io.StringIO(), "leave": False})

        def display(self, *args: Any, **kwargs: Any) -> None:
            if self.unit == "B" and self.total and self.n:
                progress(title, min(self.n / self.total, 1.0))

    return HubBar
