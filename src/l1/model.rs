//! Random operations against a model of a hundred lines; invariants after each step.
