/* kvtier.h is plain C99, and its layouts never change. */
#include "kvtier/kvtier.h"

#define SAME(name, condition) typedef char name[(condition) ? 1 : -1]

SAME(status_is_32_bit, sizeof(kvt_status) == 4);
SAME(token_is_16_bytes, sizeof(kvt_token) == 16);
SAME(layer_is_16_bytes, sizeof(kvt_layer) == 16);
SAME(rows_are_24_bytes, sizeof(kvt_rows) == 24);
SAME(match_is_24_bytes, sizeof(kvt_match) == 24);
SAME(client_options_are_40_bytes, sizeof(kvt_client_options) == 40);
SAME(space_options_are_80_bytes, sizeof(kvt_space_options) == 80);
SAME(sequence_options_are_16_bytes, sizeof(kvt_sequence_options) == 16);
SAME(view_options_are_40_bytes, sizeof(kvt_view_options) == 40);
SAME(view_stats_are_240_bytes, sizeof(kvt_view_stats) == 240);
SAME(object_is_32_bytes, sizeof(kvt_object) == 32);
SAME(object_result_is_24_bytes, sizeof(kvt_object_result) == 24);

kvt_status kvtier_header_as_c99(kvt_client** out) { return kvt_client_open(NULL, out); }
