import type { Config } from '../formats/json-config.js';

/**
 * Marks the keys that transformers writes into every configuration and that do not change what an encoder computes: how text would be generated, what labels
 * would be called, what is dropped while training, which version wrote the file.
 */
export function ignoreLibraryKeys(config: Config): void {
  config.ignore(
    'attention_dropout',
    'attention_probs_dropout_prob',
    'begin_suppress_tokens',
    'chunk_size_feed_forward',
    'diversity_penalty',
    'drop_path_rate',
    'dropout',
    'dtype',
    'early_stopping',
    'encoder_no_repeat_ngram_size',
    'encoder_stride',
    'finetuning_task',
    'hidden_dropout_prob',
    'id2label',
    'initializer_factor',
    'initializer_range',
    'label2id',
    'length_penalty',
    'max_length',
    'min_length',
    'no_repeat_ngram_size',
    'num_beam_groups',
    'num_beams',
    'num_return_sequences',
    'output_attentions',
    'output_hidden_states',
    'problem_type',
    'repetition_penalty',
    'return_dict',
    'temperature',
    'tie_word_embeddings',
    'top_k',
    'top_p',
    'torch_dtype',
    'transformers_version',
    'typical_p',
  );
}
