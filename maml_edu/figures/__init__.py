"""Every figure of the series, one function each, and the tools they share.

One module per notebook (08 has a second one, for stored results); each lists what it offers in `__all__`, and all of
it can be imported from here.
"""

from maml_edu.figures.bug_hunt import *
from maml_edu.figures.chain_rule import *
from maml_edu.figures.episodes import *
from maml_edu.figures.first_order import *
from maml_edu.figures.hessian import *
from maml_edu.figures.omniglot import *
from maml_edu.figures.omniglot_results import *
from maml_edu.figures.sine import *
from maml_edu.figures.start import *
from maml_edu.figures.style import *
from maml_edu.figures.tasks import *
