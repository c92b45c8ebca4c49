"""Whatever is acquired, released and moved, a row holds what the book-keeping says it holds."""

from hypothesis import given, settings
from hypothesis import strategies as st
from models.models_for_tests import small_config

from asearch.engines.embedded.rows import Rows
from asearch.models.kv_cache import KvCache

N_ROWS, N_POSITIONS = 5, 160
CONFIG = small_config(num_hidden_layers=1)

# Few distinct parts make long common prefixes frequent.
parts = st.lists(st.sampled_from([(1,) * 16, (2,) * 16, (1, 2) * 8, (3,), (4, 4, 4), (5,) * 40]), max_size=4)
sequences = parts.map(lambda chosen: [token for part in chosen for token in part][: N_POSITIONS - 21]).filter(bool)
actions = st.one_of(
    st.tuples(st.just("acquire"), sequences),
    st.tuples(st.just("compute"), st.integers(0, 4)),
    st.tuples(st.just("release"), st.integers(0, 4), st.lists(st.integers(1, 5), max_size=20)),
    st.tuples(st.just("compact")),
    st.tuples(st.just("flush")),
)


class Model:
    """Writes each token's id where its keys and values would stand."""

    def __init__(self) -> None:
        self.cache = KvCache(CONFIG, N_ROWS, N_POSITIONS)
        self.rows = Rows(self.cache)
        self.running: dict[int, tuple[list[int], int]] = {}

    def write(self, row: int, tokens: list[int], start: int) -> None:
        for i in range(start, len(tokens)):
            self.cache.kv_SLPW[row, :, i] = float(tokens[i])

    def check(self, row: int, tokens: list[int], n: int) -> None:
        assert self.cache.kv_SLPW[row, 0, :n, 0].tolist() == tokens[:n]

    def do(self, name: str, *arguments: object) -> None:
        getattr(self, name)(*arguments)

    def acquire(self, tokens: list[int]) -> None:
        if len(self.running) == N_ROWS:
            return
        taken = self.rows.acquire(tokens)
        if taken is None:
            assert any(n_fed < len(held) for held, n_fed in self.running.values())
            return
        row, n_reused = taken
        assert row not in self.running and n_reused < len(tokens)
        self.check(row, tokens, n_reused)
        self.running[row] = (tokens, n_reused)

    def compute(self, index: int) -> None:
        for row, (tokens, n_fed) in list(self.running.items())[index : index + 1]:
            self.write(row, tokens, n_fed)
            self.rows.computed(row, len(tokens))
            self.running[row] = (tokens, len(tokens))

    def release(self, index: int, more: list[int]) -> None:
        for row, (tokens, n_fed) in list(self.running.items())[index : index + 1]:
            more = more if n_fed == len(tokens) else []
            self.write(row, tokens[:n_fed] + more, n_fed)
            self.rows.release(row, more, n_fed)
            del self.running[row]

    def compact(self) -> None:
        moves = self.rows.compact({row: n_fed for row, (_, n_fed) in self.running.items()})
        self.running = {moves.get(row, row): held for row, held in self.running.items()}
        assert len(self.running) >= 0.6 * (max(self.running, default=-1) + 1) - 1

    def flush(self) -> None:
        if not self.running:
            self.rows.flush()


@settings(max_examples=150, deadline=None)
@given(st.lists(actions, max_size=40))
def test_rows_hold_what_is_said_of_them(steps: list[tuple[object, ...]]) -> None:
    model = Model()
    for name, *arguments in steps:
        model.do(str(name), *arguments)
        for row, (tokens, n_fed) in model.running.items():
            model.check(row, tokens, n_fed)


def test_an_exact_extension_takes_its_own_row() -> None:
    model = Model()
    model.acquire([1] * 30)
    model.compute(0)
    model.release(0, [2] * 7)
    model.acquire([1] * 30 + [2] * 7 + [3])
    assert [n_fed for _, n_fed in model.running.values()] == [37]


def test_a_member_waits_for_the_prompt_that_it_shares() -> None:
    model = Model()
    model.acquire([1] * 60)
    assert model.rows.acquire([1] * 60) is None
    model.compute(0)
    row, n_reused = model.rows.acquire([1] * 60) or (0, 0)
    assert row not in model.running and n_reused == 59
