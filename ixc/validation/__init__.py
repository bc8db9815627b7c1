"""What `validate` looks with: facts about pairs, expectations of the kept ones, a summary of it all."""
