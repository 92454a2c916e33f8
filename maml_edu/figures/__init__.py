"""Every figure of the series, one function each, and the tools they share.

One module per notebook (08 has a second one, for stored results); each lists what it offers in `__all__`, and all of
it can be imported from here.
"""

from maml_edu.figures.bug_hunt import *
from maml_edu.figures.chain_rule import *
from maml_edu.figures.episodes import *
from maml_edu.figures.families import *
from maml_edu.figures.first_order import *
from maml_edu.figures.hessian import *
from maml_edu.figures.implicit import *
from maml_edu.figures.inner_loops import *
from maml_edu.figures.navigation import *
from maml_edu.figures.omniglot import *
from maml_edu.figures.omniglot_results import *
from maml_edu.figures.scaling import *
from maml_edu.figures.sine import *
from maml_edu.figures.start import *
from maml_edu.figures.style import *
from maml_edu.figures.tasks import *
from maml_edu.figures.what_it_learned import *
