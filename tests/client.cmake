# The client library against a real daemon that runs as threads of the test.
kvt_test(client_test SOURCES
    unit/client_tail_test.cc unit/client_sequence_test.cc unit/client_view_test.cc unit/client_death_test.cc
  LIBS kvt_client kvt_daemon TIMEOUT 300 LABELS client)
