"""From what a user types to a directory: a model's own, a run's, or a name on the hub."""

import os
import re
from pathlib import Path

from minifm.errors import UserError
from minifm.text.older_files import VOCABULARIES

LAST = "last"               # a run's link to its newest checkpoint
BEST, SCORES = "best", "scores.json"    # the one that a run of fine-tuning has scored, and where
ADAPTER = "adapter_config.json"     # what tells an adapter's directory from a model's
ADAPTER_BASE = "adapter_base.json"  # and which weights it has learnt over
# All that is ever read of a model on the hub; above all, no pickle.
DOWNLOADED = ["config.json", "generation_config.json", "preprocessor_config.json", ADAPTER,
              ADAPTER_BASE, "*.safetensors", "*.safetensors.index.json", *VOCABULARIES,
              "merges.txt", "tokenizer_config.json",
              "chat_template.jinja", "additional_chat_templates/*.jinja",
              # … and of a pipeline's parts, each in a folder (pipelines.py)
              "model_index.json", "*/config.json", "scheduler/scheduler_config.json",
              *(f"tokenizer/{name}" for name in (*VOCABULARIES, "merges.txt",
                                                 "tokenizer_config.json"))]
PATIENCE = 10               # seconds for the hub to answer at all
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)


def resolve(name):
    """The directory, a Path, that `name` stands for: itself if it is one, else a model on the hub.

    A run's directory stands for its last checkpoint, or for the best where that was scored
    (fine-tuning), and that checkpoint's own path is returned:
    what is read after another stays of one piece while training goes on. A name such as "gpt2" or
    "openai-community/gpt2" is downloaded once; then the cached files serve without network too.

    Raises UserError, in one line, for what is neither.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path) and name != "":        # Path("") is the working directory
        run = not (path / "config.json").exists() and (path / LAST).is_dir()
        scored = (path / SCORES).exists() and (path / BEST).is_dir()
        return (path / (BEST if scored else LAST)).resolve() if run else path
    if os.path.isfile(path):
        raise UserError(f"{name}: expected a directory, this is a file")
    if path.suffix in (".json", ".safetensors"):
        raise UserError(f"{name}: no such file")
    if not _HUB_NAME.fullmatch(str(name)):
        raise UserError(f"{str(name)!r}: no such directory")
    return _download(str(name))


def _download(name):
    # Slow to import, and not often needed.
    import huggingface_hub as library
    from huggingface_hub.errors import RepositoryNotFoundError

    asked = None
    try:
        # The library puts no limit on how long its own first question waits.
        library.model_info(name, timeout=PATIENCE)
    except Exception as error:      # the kinds differ between the library's versions
        asked = error
    try:
        return Path(library.snapshot_download(name, allow_patterns=DOWNLOADED,
                                              local_files_only=asked is not None))
    except Exception as error:
        asked = asked or error
        reason = str(asked).strip().split("\n")[0] or type(asked).__name__
        if isinstance(asked, RepositoryNotFoundError):
            reason = "there is no such model, or not for everyone"
        if reason.startswith("[Errno"):     # such as a name server's: not what a typing error needs
            reason = "it cannot be reached"
        raise UserError(f"{name}: neither a directory here nor to be had from the hub "
                        f"({reason:.300})") from asked
