"""Published changes of BERT's attention, in Transformers' BERT."""
