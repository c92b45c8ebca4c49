"""Bugs in the ledger, admission, batches, accounts and the codec."""

from tests.planted.mutation import Mutation, prop, unit

LEDGER = "asearch/learning/ledger.py"
PLANNER = "asearch/learning/planner.py"
LEDGER_MACHINE = "tests/properties/test_ledger_machine.py"
ADMISSION_MACHINE = "tests/properties/test_admission_machine.py"

LEARNING = (
    Mutation(
        "watermark-saved-early",
        "the snapshot's watermark is the last outcome folded, although groups before it are open",
        LEDGER,
        "watermark=min(open_sequences, default=self.folded + 1) - 1,",
        "watermark=self.folded,",
        (prop(LEDGER_MACHINE),),
    ),
    Mutation(
        "snapshot-before-the-close",
        "the stored ledger is of the moment before its step was closed",
        LEDGER,
        "        self.step += 1\n        self._kept, self._verdicts, self._n_resolved = [], [], 0\n"
        "        return [StepClosed(step, groups, verdicts, self.snapshot())]",
        "        early = self.snapshot()\n        self.step += 1\n"
        "        self._kept, self._verdicts, self._n_resolved = [], [], 0\n"
        "        return [StepClosed(step, groups, verdicts, early)]",
        (unit("tests/learning/test_ledger.py"),),
    ),
    Mutation(
        "arrival-order-in-a-group",
        "a group is trained in the order in which its episodes happened to end",
        LEDGER,
        "[group.outcomes[member] for member in sorted(group.outcomes)]",
        "list(group.outcomes.values())",
        (unit("tests/learning/test_ledger.py"),),
    ),
    Mutation(
        "settled-outcome-folded-again",
        "an outcome that is settled already is counted again after a restart",
        LEDGER,
        "if self.is_settled(sequence) or self._is_late(outcome):",
        "if self._is_late(outcome) and not self.is_settled(sequence):",
        (prop(LEDGER_MACHINE),),
    ),
    Mutation(
        "incomplete-group-trained",
        "a group whose members were dropped is trained with what is left",
        LEDGER,
        "needed = members if self.rules.min_graded is None else self.rules.min_graded",
        "needed = self.rules.min_graded or 1",
        (unit("tests/learning/test_ledger.py"), prop(LEDGER_MACHINE)),
    ),
    Mutation(
        "refill-unbounded",
        "a slot whose groups carry no signal is refilled for ever",
        LEDGER,
        "if group.refill < self.rules.max_refills:",
        "if group.refill <= self.rules.max_refills:",
        (unit("tests/learning/test_ledger.py"), prop(LEDGER_MACHINE)),
    ),
    Mutation(
        "refill-twice",
        "an admitted refill is still wanted, so it is admitted again",
        PLANNER,
        "            self._refills.pop(event.group, None)\n",
        "",
        (unit("tests/learning/test_planner.py"), prop(ADMISSION_MACHINE)),
    ),
    Mutation(
        "admission-one-step-too-far",
        "generation may run eta + 1 updates ahead",
        "asearch/learning/staleness.py",
        "return slot // groups_per_step <= step + eta",
        "return slot // groups_per_step <= step + eta + 1",
        (unit("tests/learning/test_staleness.py"), prop(ADMISSION_MACHINE)),
    ),
    Mutation(
        "staleness-checked-at-admission-only",
        "tokens that grew too old on the way are trained",
        "asearch/training/batch.py",
        "kept_T = mask_T & ~too_old_T",
        "kept_T = mask_T",
        (prop("tests/properties/test_batches.py::test_no_token_above_the_bound_is_trained_and_the_sums_agree"),),
    ),
    Mutation(
        "newer-token-accepted",
        "a token newer than the step that consumes it passes for fresh",
        "asearch/learning/staleness.py",
        "if run.version.lineage > lineage or (run.version.lineage == lineage and age < 0):",
        "if run.version.lineage > lineage:",
        (unit("tests/learning/test_staleness.py"),),
    ),
    Mutation(
        "mask-of-the-parent-segment",
        "a repeated piece is trained in every segment that shows it",
        "asearch/agents/segments.py",
        "trained = index in own",
        "trained = piece.own",
        (unit("tests/agents/test_episode_properties.py"), prop("tests/properties/test_prefix_merge.py")),
    ),
    Mutation(
        "identity-by-subtraction",
        "the report's queued episodes are what is missing in the identity, so it always holds",
        "asearch/evaluation/accounting.py",
        '"queued": sum(group.sums.n for group in self.queued.values()) if trains else 0,',
        '"queued": ends.graded - sum(verdict.episodes for verdict in self._verdicts()) if trains else 0,',
        (unit("tests/evaluation/test_identities.py"),),
    ),
    Mutation(
        "audit-by-subtraction",
        "the audit's episodes in flight are what is missing in the identity, so it always holds",
        "actors/cli/auditing/episodes.py",
        '"in_flight": sum(episode not in mine for episode in requested),',
        '"in_flight": len(requested) - len(mine),',
        (unit("tests/evaluation/test_identities.py"),),
    ),
    Mutation(
        "second-outcome-counted",
        "an outcome that comes very late, after the first was purged, opens its group again",
        LEDGER,
        "return outcome.slot in self._closed_slots or outcome.refill < self._refills.get(outcome.slot, 0)",
        "return outcome.slot in self._closed_slots and outcome.refill < self._refills.get(outcome.slot, 0)",
        (unit("tests/learning/test_ledger.py"), prop(LEDGER_MACHINE)),
    ),
    Mutation(
        "deep-bytes-kill-the-decoder",
        "deeply nested bytes raise something that no reader expects",
        "schemas/codec.py",
        "        event = _decode_any_event(data)\n    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:",
        "        event = _decode_any_event(data)\n    except msgspec.DecodeError as error:",
        (unit("tests/schemas/test_schema_codec.py"),),
    ),
)

GRADING = (
    Mutation(
        "answer-from-a-page",
        "an answer that only a page holds is graded",
        "asearch/rewards/grader.py",
        "if answer and not any(answer in generation for generation in record.generations):",
        "if answer and not any(answer in generation for generation in record.generations) and not record.tool_log:",
        (unit("tests/rewards/test_rewards.py"), unit("tests/actors/test_grader.py")),
    ),
    Mutation(
        "tool-text-acted-upon",
        "tags in the text that a tool returned are taken for the policy's",
        "asearch/agents/tag_agent.py",
        "        action = self._codec.action(text, self.settings.tools)\n",
        "        shown = self._tokenizer.decode(unpack_ids(path_ids(state.pieces, tip)))\n"
        "        action = self._codec.action(shown, self.settings.tools)\n",
        (unit("tests/agents/test_walkthroughs.py", "tests/agents/test_episode_properties.py"),),
    ),
    Mutation(
        "outage-scored",
        "a tool that is down looks to the policy like a search without results",
        "asearch/agents/tag_agent.py",
        "if result.error in OUTAGES:",
        'if result.error == "retryable" and not result.message:',
        (unit("tests/agents/test_walkthroughs.py"),),
    ),
    Mutation(
        "ungradable-scored-zero",
        "an episode that the grader cannot grade gets the reward 0",
        "actors/grader.py",
        "            reward = grade(record, key, self._config)\n",
        "            try:\n                reward = grade(record, key, self._config)\n            except GradingError:\n"
        "                from schemas.records import Reward\n\n                reward = Reward(value=0.0)\n",
        (unit("tests/actors/test_grader.py"),),
    ),
)
