"""What is finished stays finished: content keys, create-once markers, tensors in Arrow, tables in Parquet.

`open_store` is in `afterfit.store.directory`; keys are in `afterfit.store.keys`, which does not import torch.
"""
