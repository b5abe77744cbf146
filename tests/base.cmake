kvt_test(base_test SOURCES unit/base_test.cc unit/token_texts_test.cc unit/toml_test.cc LIBS kvt_base)
