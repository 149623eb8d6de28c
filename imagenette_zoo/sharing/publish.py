"""Publishing a model on the Hugging Face Hub, with huggingface_hub's own calls: its token, its upload, its checks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, ModelInfo, constants, get_token
from huggingface_hub.utils import (
    HfHubHTTPError,
    HFValidationError,
    disable_progress_bars,
    logging,
    validate_repo_id,
)

from ..config.uses import UseOptions
from ..data.archives import digest_of
from ..errors import UserError, first_line
from ..inference.loading import load_trained, run_of
from ..models.factory import model_config, model_cost, source_args
from ..models.model_folder import link_model_folder, listed_names, model_folder, read_config, save_model_folder
from ..report.confusion import confusion_matrix
from ..report.curves import learning_curves
from ..report.drawing import MOST_CELLS, Picture
from ..report.page import report_numbers
from ..training.run_folder import RunFolder
from ..utils.console import Console
from ..utils.files import write_atomic, write_errors, write_json
from ..utils.modules import import_modules, imported_modules
from ..utils.process import restore_process
from ..utils.reading import read_text
from ..version import __version__
from .card import CardFacts, Trained, model_card, needs_zoo, read_trained

__all__ = ['PublishOptions', 'publish', 'write_folder']

WRITTEN = '.card.md5'  # of an output: the digest of its card as it was written
# What can go wrong on the way to the Hub: the errors of the HTTP library, whichever huggingface_hub has, those of the
# system, and what huggingface_hub makes of them while it uploads files (RuntimeError) and checks a card (ValueError).
FAILURES: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class PublishOptions:
    """How a model is published.

    Args:
        private: A repository that is made is private.
        revision: The branch; it is made where there is none. None: the main one.
        license: The Hub's name of the weights' licence; None: that of the model's config, else apache-2.0.
        output: Where the folder is written; None: `hub/REPO_ID`.
        overwrite: Files on the Hub that differ are replaced.
        dry_run: The folder is written and checked, nothing is sent.
    """

    private: bool = False
    revision: str | None = None
    license: str | None = None
    output: str | None = None
    overwrite: bool = False
    dry_run: bool = False


@restore_process()
def publish(
    source: str, repo_id: str, options: PublishOptions | None = None, *, quiet: bool = False, **weights: Any
) -> Path:
    """Puts a trained model on the Hub: afterwards `timm.create_model('hf-hub:REPO_ID', pretrained=True)` has it.

    Everything goes in one commit, so that a repository has the whole model or nothing of it; what is interrupted can
    be repeated.

    Args:
        source: A finished run, whose last weights are published, a model folder, as a run's `best/`, or any other
            name that `load_trained` takes.
        repo_id: `OWNER/NAME`.
        options: How.
        quiet: Prints nothing.
        **weights: The other fields of `UseOptions`, as `checkpoint`; they are not for a folder, which has its own.

    Returns:
        The folder that was sent.

    Raises:
        UserError: The source is no finished run or model, the name is none, there is no token or the Hub refuses it,
            the repository holds another model, or the connection was lost.
    """
    options = options or PublishOptions()
    console = Console(quiet)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f'REPO_ID {repo_id}: {first_line(error)}') from None
    if '/' not in repo_id:
        raise UserError(f'REPO_ID {repo_id}: OWNER/NAME is expected, as in me/{repo_id}')
    token = None if options.dry_run else _token(repo_id)
    if token is None and not options.dry_run:
        raise UserError(
            f'{repo_id}: no token for {constants.ENDPOINT}: get one that may write, then log in (hf auth login) or '
            f'set HF_TOKEN; --dry-run needs none'
        )
    if token is not None and not (token.isascii() and token.isprintable()):  # an error would show it in other letters
        raise UserError(f'{repo_id}: the token has odd characters: log in anew (hf auth login) or correct HF_TOKEN')
    output = Path(options.output) if options.output else Path('hub', repo_id)
    import_modules(weights.get('device_modules', ()))
    with tempfile.TemporaryDirectory() as place:
        folder, trained = _find(source, weights, Path(place, 'model'))
        files = write_folder(folder, trained, repo_id, output, options, console)
    for name in files:
        console.line(f'  {(output / name).stat().st_size / 2**10:10,.1f} KiB  {name}')
    where = f'{constants.ENDPOINT}/{repo_id}' + (f', branch {options.revision}' if options.revision else '')
    if options.dry_run:
        console.line(f'dry run: nothing was sent; these files of {output} would go to {where}')
        return output
    with _one_line(repo_id, str(token), console):
        news = _send(output, files, repo_id, options, str(token))
    console.line(f'{"published" if news else "nothing to do, all of it is there already"}: {where}')
    if needs_zoo(read_config(output)):
        console.line('its card says how to use it')
    else:
        console.line(f'timm.create_model("hf-hub:{_named(repo_id, options)}", pretrained=True)')
    return output


def _token(repo_id: str) -> str | None:
    try:
        return get_token()
    except Exception as error:  # whatever the ways are by which huggingface_hub gets one
        raise UserError(f'{repo_id}: no token: {first_line(error)}') from None


def _named(repo_id: str, options: PublishOptions) -> str:
    return f'{repo_id}@{branch}' if (branch := _branch(options)) else repo_id


def _branch(options: PublishOptions) -> str | None:
    return None if options.revision == constants.DEFAULT_REVISION else options.revision


def _find(source: str, weights: Mapping[str, Any], place: Path) -> tuple[Path, Trained | None]:
    """The model folder that is meant, and the scores in its run where it belongs to one. A model that lies in no folder
    is written to `place`."""
    path = Path(os.path.abspath(source.removeprefix('local-dir:')))  # without '..'
    run = run_of(path)
    if run is not None and not RunFolder(run).finished:
        raise UserError(
            f'{run}: this run is not finished (no result.json): imagenette-zoo train --resume {run} continues it'
        )
    folder = path / 'last' if run == path else model_folder(path)
    if folder is None:
        return _written(source, weights, place), None
    if unused := [key for key in weights if key != 'device_modules']:
        raise UserError(f'{source}: has its own weights: leave --{unused[0].replace("_", "-")} out')
    return folder, read_trained(run, folder.name) if run is not None else None


def _written(name: str, weights: Mapping[str, Any], place: Path) -> Path:
    """Writes the folder of a model that lies in none."""
    options = UseOptions(model=name, **weights)
    opened = load_trained(name, options, torch.device('cpu'))
    own = {'global_pool': options.gp, **source_args(name, opened.model), **options.model_kwargs}
    own |= {'in_chans': options.channels} if options.channels else {}
    args = {key: value for key, value in own.items() if value is not None}
    config = model_config(opened.model, opened.config, opened.class_names if opened.named else None, args)
    save_model_folder(place, config, opened.model.state_dict())
    return place


# --- The folder -------------------------------------------------------------------------------------------------------


def write_folder(
    folder: Path, trained: Trained | None, repo_id: str, output: Path, options: PublishOptions, console: Console
) -> list[str]:
    """Writes what is to be published, and checks it: that the model can be built, takes its weights and its input, and
    that huggingface_hub can read the card.

    Args:
        folder: The model folder.
        trained: How its weights came about, if known.
        repo_id: `OWNER/NAME`.
        output: Where to; it is made.
        options: Licence and branch.
        console: Where the progress is shown.

    Returns:
        The names of the files.

    Raises:
        UserError: It is no model's, or `output` can't be written.
    """
    config = read_config(folder)
    model: Any = load_trained(str(folder), UseOptions(model=str(folder)), torch.device('cpu')).model
    params, gmacs = model_cost(model, model.pretrained_cfg['input_size'])
    names = config.get('label_names') or model.pretrained_cfg.get('label_names')
    labels = listed_names(names, config['num_classes'], str(folder))
    _take(output)
    link_model_folder(folder, output)
    write_json(output / 'config.json', config)  # an older one is not as transformers takes it
    code = _write_code(folder, config, output)
    pictures = _pictures(trained, console) if trained is not None else []
    for picture in pictures:
        write_atomic(output / f'{picture.name}.png', picture.png)
    license_ = options.license or model.pretrained_cfg.get('license') or 'apache-2.0'
    shown = [(f'{picture.name}.png', picture.title) for picture in pictures]
    card = model_card(CardFacts(_named(repo_id, options), config, labels, params, gmacs, license_, trained, shown))
    if _is_edited(output):
        console.line(f'{output / "README.md"}: was edited, so it is kept; remove it to have it written anew')
        _check_card(output / 'README.md')
    else:
        write_atomic(output / 'README.md', str(card).encode())
        write_atomic(output / WRITTEN, digest_of(output / 'README.md').encode())
        if _check_card(output / 'README.md') != card.data.to_dict():
            raise AssertionError(f'{output}: huggingface_hub reads the card otherwise than it was written')
    return ['config.json', 'model.safetensors', 'README.md', *code, *(file for file, _ in shown)]


def _take(output: Path) -> None:
    """Makes a folder that nothing but what is published is in. Raises `UserError` where it holds files of others."""
    with write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        earlier = all(os.path.isfile(output / name) for name in ('config.json', 'model.safetensors', 'README.md'))
        if os.path.isfile(output / WRITTEN):
            return
        if any(output.iterdir()) and not earlier:
            raise UserError(f'--output {output}: holds other files: choose an empty or a new folder')
    write_atomic(output / WRITTEN, b'')


def _is_edited(output: Path) -> bool:
    """Whether the card is another than was written."""
    written = read_text(output / WRITTEN)
    return bool(written) and os.path.isfile(output / 'README.md') and digest_of(output / 'README.md') != written


def _check_card(file: Path) -> dict[str, Any]:
    """The metadata of a card. Raises `UserError` where huggingface_hub can't read them."""
    try:
        return ModelCard.load(file).data.to_dict()  # type: ignore[no-any-return]
    except Exception as error:  # YAML's and its own
        raise UserError(f'{file}: huggingface_hub cannot read its metadata: {first_line(error)}: correct it') from None


def _write_code(folder: Path, config: dict[str, Any], output: Path) -> list[str]:
    """Writes the files of the user's own that a model needs; returns their names.

    Raises:
        UserError: One is not that which the model was trained with.
    """
    needed, names = config.get('device_modules', {}), []
    for module in imported_modules().values():
        if module.label in needed and module.file is not None:
            if module.sha256 != needed[module.label]:
                raise UserError(
                    f'{folder}: {module.label} has changed since it was trained: give --device-modules the copy in '
                    f"the run's code/"
                )
            write_atomic(output / module.label, module.file.read_bytes())
            names.append(module.label)
    return names


def _pictures(trained: Trained, console: Console) -> list[Picture]:
    """The report's figures of this run, where matplotlib is there to draw them."""
    run = report_numbers([trained.record])['runs'][0]
    lowest = min((row['mean'] for row in run['curve']), default=0.0)
    try:
        pictures = [learning_curves([run], 'curves', (max(0.0, lowest - 2), 100.0))]
        confusion = run['confusion'] if trained.epoch + 1 == trained.record.result.epochs else None  # of last/
        if confusion and len(confusion['classes']) <= MOST_CELLS:
            pictures.append(confusion_matrix(run, 'confusion'))
    except ImportError:
        console.line('the card gets no figures: they need pip install "imagenette-zoo[report]"')
        return []
    return pictures


# --- The Hub ----------------------------------------------------------------------------------------------------------


def _send(folder: Path, files: list[str], repo_id: str, options: PublishOptions, token: str) -> bool:
    """Sends the files in one commit, the card's metadata checked by the Hub first; False where it has them all."""
    api = HfApi(token=token, library_name='imagenette-zoo', library_version=__version__)
    private: dict[str, Any] = {'private': True} if options.private else {}  # else as the owner has it
    api.create_repo(repo_id, exist_ok=True, **private)
    if branch := _branch(options):
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    info, there = _there(api, repo_id, options)
    old = [name for name in files if name in there and not _same(folder / name, there[name])]
    own = not branch or info.sha != api.model_info(repo_id).sha  # else the branch has but what it began with
    if old and own and not options.overwrite:
        raise UserError(
            f'{repo_id}: has another {", ".join(old)} already: choose another name or --revision BRANCH, or '
            f'--overwrite (the old files stay in its history)'
        )
    if not old and there.keys() >= set(files):
        return False
    try:
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=files,
            revision=options.revision,
            commit_message='Update the model' if old else 'Add the model',
            parent_commit=info.sha,
        )
    except HfHubHTTPError:  # also where only the answer to the commit was lost, and it was sent again
        _, there = _there(api, repo_id, options)
        if not all(name in there and _same(folder / name, there[name]) for name in files):
            raise
    return True


def _there(api: HfApi, repo_id: str, options: PublishOptions) -> tuple[ModelInfo, dict[str, Any]]:
    """The branch on the Hub, and its files by name."""
    info = api.model_info(repo_id, revision=options.revision, files_metadata=True)
    return info, {file.rfilename: file for file in info.siblings or ()}


def _same(file: Path, there: Any) -> bool:
    """Whether a file is what the Hub has, by the hash of its content: git's own, or LFS's."""
    data = file.read_bytes()
    if there.lfs is not None:
        return there.lfs['sha256'] == hashlib.sha256(data).hexdigest()
    return there.blob_id == hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


@contextlib.contextmanager
def _one_line(repo_id: str, token: str, console: Console) -> Iterator[None]:
    """Turns errors on the way to the Hub into one line, without the token."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports every attempt
    if not console.live:
        disable_progress_bars()
    try:
        yield
    except FAILURES as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise UserError(f'{repo_id}: {_reason(cause, repo_id)}'.replace(token, '***')) from None
    finally:
        logging.set_verbosity(verbosity)


def _reason(error: BaseException, repo_id: str) -> str:
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    message = getattr(error, 'server_message', None) or first_line(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        return (
            f'{constants.ENDPOINT} refuses the token ({status or message}): give one that may write to '
            f'{repo_id.partition("/")[0]}, by hf auth login or HF_TOKEN'
        )
    if status is not None and status < 500:
        return f'{constants.ENDPOINT} refuses ({status}): {message}'
    if isinstance(error, ValueError):
        return ' '.join(str(error).split())
    what = f'has trouble ({status}: {message})' if status else f'was not reached or the connection was lost ({message})'
    return (
        f'{constants.ENDPOINT} {what}. The repository has the whole model or nothing of it. Give the same command again'
    )
