"""All contenders by name."""

from comparison.contenders import ABLATIONS, CONTENDERS
from comparison.pictures import PICTURES, TAKEN_APART

ALL = {**CONTENDERS, **ABLATIONS, **PICTURES, **TAKEN_APART}
TITLES = {name: contender.title for name, contender in ALL.items()}
