"""Operations on whole matrices, for rules with a step between two elementwise passes."""
