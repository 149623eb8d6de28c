"""Studies: trainings with several seeds, their analysis, and the claims about them.

The package can be called: `imagenette_zoo.study('claims')`, see `imagenette_zoo.report.notebook.study`.
"""

from ..utils.callable_package import make_callable

make_callable(__name__, 'imagenette_zoo.report.notebook', 'study')
