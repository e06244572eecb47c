"""All contenders by name."""

from comparison.contenders import ABLATIONS, CONTENDERS
from comparison.pictures import PICTURES

ALL = {**CONTENDERS, **ABLATIONS, **PICTURES}
TITLES = {name: contender.title for name, contender in ALL.items()}
