"""Whether timm has the model and the optimizer that are named. It is imported when that is first asked."""

from __future__ import annotations

from typing import Any

from ..errors import UserError, nearest
from ..utils.modules import import_modules, is_reference

__all__ = ['NAMES', 'check_model', 'look_up', 'timm_optimizer']

NAMES = frozenset(('model', 'opt'))  # options that name what timm has
ELSEWHERE = ('local-dir:', 'hf-hub:', 'hf_hub:')  # where models of other names are


def look_up(option: str, value: Any) -> None:
    """Looks whether timm, this package or a plugin has what an option names; `module:attribute` is not looked for.

    Raises:
        UserError: They have not.
    """
    if option == 'model':
        check_model(str(value))
    elif option == 'opt' and ':' not in str(value):
        timm_optimizer(str(value))


def check_model(name: str) -> None:
    """Looks whether there is a model of a name; one of a folder, of the Hub or of the user's own is not looked for.

    Raises:
        UserError: There is none; the nearest are named.
    """
    import timm

    bare = name.split('.')[0]
    if is_reference(name) or name.startswith(ELSEWHERE) or timm.is_model(bare):
        return
    import_modules(())  # the plugins
    if not timm.is_model(bare):
        raise UserError(f'unknown model {name!r}{nearest(name, timm.list_models())} (imagenette-zoo list shows ours)')


def timm_optimizer(opt: str) -> str:
    """The optimizer of timm's that a name means, without the lookahead around it.

    Raises:
        UserError: There is none; the nearest are named.
    """
    import timm.optim

    name = opt.lower().removeprefix('lookahead_')
    if name not in timm.optim.list_optimizers():
        import_modules(())
    known = timm.optim.list_optimizers()
    if name not in known:
        old = 'muon' in name and 'muon' not in known
        remedy = ': Muon needs timm 1.0.21: pip install --upgrade timm' if old else nearest(opt, known)
        raise UserError(f'--opt: timm {timm.__version__} has no optimizer {opt!r}{remedy}')
    if '_' in name:
        raise UserError(f'--opt {opt}: timm reads only the part after _: register it by a name without _')
    return name
