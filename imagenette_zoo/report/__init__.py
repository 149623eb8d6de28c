"""Reports of studies.

The package can be called: `imagenette_zoo.report('runs/claims')`, see `imagenette_zoo.report.notebook.report`.
"""

from ..utils.callable_package import make_callable

make_callable(__name__, 'imagenette_zoo.report.notebook', 'report')
