"""All contenders by name."""

from comparison.contenders import ABLATIONS, CONTENDERS
from comparison.ideas import IDEAS
from comparison.pictures import PICTURES, TAKEN_APART

WITH_SMALL_NETWORK = {**CONTENDERS, **ABLATIONS}
WITH_BACKBONE = {**PICTURES, **TAKEN_APART, **IDEAS}
ALL = {**WITH_SMALL_NETWORK, **WITH_BACKBONE}
TITLES = {name: contender.title for name, contender in ALL.items()}
