"""The whole table."""

from tests.planted.mutation import Mutation
from tests.planted.table_bus import BUS
from tests.planted.table_episodes import EPISODES
from tests.planted.table_learning import GRADING, LEARNING
from tests.planted.table_plan import PLAN
from tests.planted.table_training import TRAINING

TABLE: tuple[Mutation, ...] = (*LEARNING, *GRADING, *EPISODES, *PLAN, *TRAINING, *BUS)
