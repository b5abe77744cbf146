target_sources(kvt_daemon PRIVATE
  abstract_builds.cc abstracts.cc admission.cc codebooks.cc committer.cc control_ops.cc control_ops_abstracts.cc
  control_ops_housekeeping.cc control_ops_open.cc control_ops_sequences.cc control_ops_texts.cc cost_model.cc
  directory.cc engine.cc expiry.cc fetcher.cc file_reads.cc fills.cc kept_files.cc leases.cc log_reader.cc matcher.cc object_writes.cc objects.cc
  raw_segment.cc read_counts.cc reclaim.cc recovery.cc reindex.cc ring_server.cc seal_copy.cc sealer.cc segment_files.cc segment_meta.cc
  segments.cc sequences.cc sessions.cc sidecars.cc spaces.cc stored_tail.cc upkeep.cc wipe.cc write_budget.cc)
target_link_libraries(kvt_daemon PUBLIC kvt_kernels)
