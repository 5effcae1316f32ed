"""Surgery on a model tree: adapters beside its matrices, vectors before its tokens, weights of fewer bits."""
