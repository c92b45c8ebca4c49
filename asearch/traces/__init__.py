"""What is recorded of episodes, for people: rows of a list, the story of an episode turn by turn, replay, behaviour, exports."""
