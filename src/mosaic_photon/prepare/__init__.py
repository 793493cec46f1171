"""Text -> MDS shards of fixed-length token arrays, as llm-foundry's ConcatTokensDataset cuts them."""
