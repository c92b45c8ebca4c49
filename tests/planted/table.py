"""The whole table."""

from tests.planted.mutation import Mutation
from tests.planted.table_bus import BUS
from tests.planted.table_learning import GRADING, LEARNING

TABLE: tuple[Mutation, ...] = (*LEARNING, *GRADING, *BUS)
