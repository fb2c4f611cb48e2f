"""All that a method, classifier or attack may import from the harness."""

from bench.diffusion.model import DiffusionModel as DiffusionModel
from bench.diffusion.schedule import DDIMSchedule as DDIMSchedule
from bench.diffusion.text import PlainText as PlainText
from bench.errors import BenchError as BenchError
from bench.files import sha256_file as sha256_file
from bench.files import sha256_text as sha256_text
from bench.interfaces import ActivationEdit as ActivationEdit
from bench.interfaces import ClassifierOutput as ClassifierOutput
from bench.interfaces import Cond as Cond
from bench.interfaces import EditBank as EditBank
from bench.interfaces import Erasure as Erasure
from bench.interfaces import FitContext as FitContext
from bench.interfaces import Guidance as Guidance
from bench.interfaces import MethodConfig as MethodConfig
from bench.interfaces import Role as Role
from bench.interfaces import TextEdit as TextEdit
from bench.interfaces import UnlearningMethod as UnlearningMethod
from bench.interfaces import Weights as Weights
from bench.types import Card as Card
from bench.types import Concept as Concept
from bench.types import ConceptTexts as ConceptTexts
