"""Which option gives way: one that is given wins over what a lower layer, or a default, chose for it.

Options come in layers: the defaults, a recipe, what a study or a person gives above it. Two values of the same layer
may contradict each other; then `Recipe.check` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ['related', 'resolve']

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Options that were chosen for the value of another one.

    Args:
        of: That other one, or several.
        names: The options.
        gives_way: Whether they do, from the values that hold now and those that held where they were given.
        fitted: The value of an option then, by its name; its default where there is none.
        moot: Also where they are given above it: they say nothing that could contradict it.
    """

    of: tuple[str, ...]
    names: tuple[str, ...]
    gives_way: Callable[[Values, Values], bool]
    fitted: Callable[[str, Values, Values], Any] | None = None
    moot: bool = False


def _is_given(name: str) -> Callable[[Values, Values], bool]:
    """They say the same thing in two ways: whichever is given holds."""
    return lambda now, then: now[name] is not None and now[name] is not False


def _differs(name: str) -> Callable[[Values, Values], bool]:
    """They belong to that value and to no other."""
    return lambda now, then: bool(now[name] != then[name])


def _has_both(name: str) -> Callable[[Values, Values], bool]:
    return lambda now, then: now[name] is not None and now['input_size'] is not None


def _scaled(name: str, now: Values, then: Values) -> Any:
    """A number of epochs, or several, in proportion to the epochs."""
    value, ratio = now[name], now['epochs'] / then['epochs']
    if isinstance(value, tuple):
        return tuple(sorted({max(1, round(each * ratio)) for each in value}))
    return max(1, round(value * ratio))


def _no_warm_up_left(now: Values, then: Values) -> bool:
    warms_up = now['sched'] != 'none' and ':' not in now['sched'] and not now['warmup_prefix']
    return warms_up and now['warmup_epochs'] >= now['epochs']


def _channels(now: Values) -> int:
    return now['in_chans'] or (now['input_size'] or (3,))[0]


def _other_channels(now: Values, then: Values) -> bool:
    return _channels(now) != 3


def _no_colour(name: str, now: Values, then: Values) -> Any:
    return 0.0 if name == 'color_jitter' else None


def _fitted_size(name: str, now: Values, then: Values) -> Any:
    """The `input_size` with the channels or the side that are given."""
    channels, *size = now['input_size']
    return (now['in_chans'] or channels, *([now['img_size']] * 2 if now['img_size'] else size))


def _other_images(now: Values, then: Values) -> bool:
    """The data set is another one, which has its own place."""
    return now['dataset'] in ('imagewoof', 'imagewang', 'synthette') and now['dataset'] != then['dataset']


def _mixes(now: Values) -> bool:
    return bool(now['mixup'] or now['cutmix'] or now['cutmix_minmax'] is not None)


TEACHING = (
    'kd_distill_type', 'kd_loss_type', 'kd_temperature', 'distill_loss_weight', 'task_loss_weight',
    'kd_student_feature_dim', 'kd_teacher_feature_dim', 'kd_token_distill_type',
)  # fmt: skip
SIZES = ('train_size_probs', 'train_size_schedule', 'train_size_schedule_spread', 'train_size_random_mix')
PARTS = (
    # The same thing in two ways.
    Part(('img_size',), ('train_img_sizes', *SIZES), _is_given('img_size')),
    Part(('input_size',), ('img_size', 'in_chans', 'train_img_sizes', *SIZES), _is_given('input_size')),
    *(Part((name,), ('input_size',), _has_both(name), _fitted_size) for name in ('img_size', 'in_chans')),
    Part(('lr_base',), ('lr',), _is_given('lr_base')),
    Part(('lr_base_size',), ('lr',), _is_given('lr_base_size')),
    Part(('lr_base_scale',), ('lr',), _is_given('lr_base_scale')),
    Part(('pretrained',), ('initial_checkpoint',), _is_given('pretrained')),
    Part(('initial_checkpoint',), ('pretrained',), _is_given('initial_checkpoint')),
    Part(('loss',), ('bce_loss', 'smoothing', 'class_weights'), _is_given('loss')),
    Part(('bce_loss',), ('loss', 'class_weights'), _is_given('bce_loss')),
    Part(('class_weights',), ('loss', 'bce_loss', 'balanced'), _is_given('class_weights')),
    Part(('balanced',), ('class_weights',), _is_given('balanced')),
    Part(('cutmix',), ('cutmix_minmax',), _is_given('cutmix')),
    Part(('resume',), ('overwrite',), _is_given('resume')),
    Part(('overwrite',), ('resume',), _is_given('overwrite')),
    Part(('dataset',), ('data_dir',), _other_images),
    Part(('data_dir',), ('dataset',), lambda now, then: now['dataset'] == 'synthette' and now['data_dir']),
    # What belongs to one optimizer, or to one schedule.
    Part(('opt',), ('opt_kwargs', 'opt_betas', 'opt_eps'), _differs('opt')),
    Part(
        ('sched',),
        ('decay_rate', 'decay_epochs', 'decay_milestones', 'lr_decay_fn', 'lr_stable_timescale'),
        _differs('sched'),
    ),
    # What is for three channels alone.
    Part(('in_chans', 'input_size'), ('color_jitter', 'grayscale_prob', 'aa'), _other_channels, _no_colour),
    Part(('in_chans', 'input_size'), ('mean', 'std'), lambda now, then: _channels(now) != _channels(then)),
    # What is nothing by itself.
    Part(('sched',), ('sched_on_updates',), lambda now, then: now['sched'] == 'plateau'),
    Part(('model_ema',), ('model_ema_warmup', 'model_ema_force_cpu'), lambda now, then: not now['model_ema']),
    Part(('kd_model_name',), TEACHING, lambda now, then: now['kd_model_name'] is None, moot=True),
    Part(('torchcompile',), ('torchcompile_mode',), lambda now, then: now['torchcompile'] in (None, 'none')),
    Part(
        ('grad_accum_steps',),
        ('torchcompile_mode',),
        lambda now, then: now['grad_accum_steps'] > 1
        and now['torchcompile_mode'] in ('reduce-overhead', 'max-autotune'),
    ),
    Part(('train_img_sizes',), SIZES, lambda now, then: now['train_img_sizes'] is None),
    Part(
        ('train_img_sizes',),
        ('train_size_probs',),
        lambda now, then: len(now['train_size_probs'] or ()) != len(now['train_img_sizes'] or ()),
    ),
    Part(('train_img_sizes',), ('train_size_schedule',), lambda now, then: len(now['train_img_sizes'] or ()) < 2),
    Part(('mixup', 'cutmix', 'cutmix_minmax'), ('mixup_off_epoch',), lambda now, then: not _mixes(now)),
    # Epochs that lie beyond the last one.
    Part(('epochs',), ('warmup_epochs',), _no_warm_up_left, lambda name, now, then: now['epochs'] - 1),
    Part(('epochs',), ('mixup_off_epoch',), lambda now, then: now['mixup_off_epoch'] >= now['epochs'], _scaled),
    Part(
        ('epochs',),
        ('decay_milestones',),
        lambda now, then: now['sched'] == then['sched'] == 'multistep'
        and max(now['decay_milestones'], default=0) >= now['epochs'],
        _scaled,
    ),
    Part(
        ('epochs',),
        ('decay_epochs',),
        lambda now, then: now['sched'] in ('step', 'wsd', 'rsqrt') and (now['decay_epochs'] or 0) >= now['epochs'],
        _scaled,
    ),
)


def related(names: Collection[str]) -> set[str]:
    """The options that may give way to these."""
    return {part for each in PARTS if {*each.of} & {*names} for part in each.names}


def resolve(layers: Sequence[Values], defaults: Values) -> tuple[dict[str, Any], list[str]]:
    """The values of several layers together, and a line on each option that gave way.

    Args:
        layers: What each layer gives, the lowest first, checked.
        defaults: The value of every option.

    Returns:
        `(values that are not left at their default, lines)`.
    """
    level, held = dict.fromkeys(defaults, 0), [dict(defaults)]
    for number, layer in enumerate(layers, 1):
        level.update(dict.fromkeys(layer, number))
        held.append({**held[-1], **layer})
    now = dict(held[-1])
    changes: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        winner = max(part.of, key=lambda name: level[name])
        for name in part.names:
            then = held[level[name]]
            if (part.moot or level[name] < level[winner]) and part.gives_way(now, then):
                value = part.fitted(name, now, then) if part.fitted else defaults[name]
                if value != now[name]:
                    changes.setdefault(winner, {})[name] = now[name]
                    now[name] = value
    values = {name: now[name] for name in defaults if level[name] or now[name] != defaults[name]}
    return values, [_line(winner, former, now) for winner, former in changes.items()]


def _line(winner: str, former: Values, now: Values) -> str:
    parts = (f'{name} is {_shown(now[name])} instead of {_shown(value)}' for name, value in former.items())
    return f'--{winner.replace("_", "-")} {_shown(now[winner])}: {", ".join(parts)}'


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ' '.join(map(_shown, value))
    if isinstance(value, bool):
        return 'on' if value else 'off'
    return 'none' if value in (None, '', {}) else f'{value:g}' if isinstance(value, float) else str(value)
