"""`imagenette-zoo export`, `publish` and `demo`."""

from __future__ import annotations

import argparse
import dataclasses

from ..config.fields import add_flags, given_flags
from ..config.uses import CheckpointOptions, ExportOptions, HeatMapOptions
from .command import LOADING, Command, one_model, positive

__all__ = ['DEMO', 'EXPORT', 'PUBLISH']


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('run', nargs='?', metavar='MODEL', help='the same as --model')
    add_flags(parser, ExportOptions)


def _export_options(args: argparse.Namespace) -> ExportOptions:
    return ExportOptions(**one_model(args, given_flags(args, ExportOptions)))


def _export(args: argparse.Namespace) -> int:
    from ..sharing.export import export_model

    export_model(_export_options(args))
    return 0


def _add_publish(parser: argparse.ArgumentParser) -> None:
    kinds = "a finished run, a model folder, as a run's best/, hf-hub:NAME or a model's name"
    parser.add_argument('source', metavar='MODEL', help=kinds)
    parser.add_argument('repo_id', metavar='REPO_ID', help='OWNER/NAME on the Hugging Face Hub')
    parser.add_argument('--private', action='store_true', help='make the repository private if it is new')
    parser.add_argument('--revision', metavar='BRANCH', help='publish on this branch (default: main)')
    parser.add_argument('--license', metavar='ID', help="the weights' licence (default: what the model's config says)")
    parser.add_argument('--output', metavar='DIR', help='where the folder is written (default: hub/REPO_ID)')
    parser.add_argument('--overwrite', action='store_true', help='replace what the repository has')
    parser.add_argument('--dry-run', action='store_true', help='write and check the folder, but send nothing')
    add_flags(parser, CheckpointOptions)


def _publish(args: argparse.Namespace) -> int:
    from ..sharing.publish import PublishOptions, publish

    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(PublishOptions)}
    publish(args.source, args.repo_id, PublishOptions(**options), **given_flags(args, CheckpointOptions))
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'models',
        nargs='*',
        metavar='MODEL',
        help="a run, a model folder, hf-hub:NAME or a model's name; two are shown side by side (default: two of the "
        'zoo, whose weights come with the package)',
    )
    parser.add_argument('--port', type=positive, metavar='N', help='of the page (default: the first free from 7860)')
    parser.add_argument(
        '--host',
        metavar='ADDRESS',
        help='the address it listens at: 0.0.0.0 lets other machines in, as a container needs (default: '
        '$GRADIO_SERVER_NAME, else 127.0.0.1, this machine alone)',
    )
    add_flags(parser, HeatMapOptions)


def _demo(args: argparse.Namespace) -> int:
    from ..sharing.demo import DEFAULT, serve

    flags = given_flags(args, HeatMapOptions)
    models = [*args.models, *([flags.pop('model')] if 'model' in flags else [])]
    serve(models or DEFAULT, args.port, args.host, **flags)
    return 0


EXPORT = Command(
    'export',
    'write a trained model for other programs: ONNX, torch.export, TorchScript',
    _add_export,
    _export,
    ' [MODEL]',
    lambda args: f'export: {_export_options(args).model}{LOADING}',
)
PUBLISH = Command(
    'publish',
    'put a trained model on the Hugging Face Hub',
    _add_publish,
    _publish,
    ' MODEL REPO_ID',
    lambda args: f'publish: {args.source} as {args.repo_id}{LOADING}',
)
DEMO = Command(
    'demo',
    'a page that classifies your images and shows why',
    _add_demo,
    _demo,
    ' [MODEL…]',
    lambda args: f'demo: {" and ".join(args.models) or "the models of the zoo"}{LOADING}',
)
