// Export and import beside clients that are at work.
#include <gtest/gtest.h>

#include "tests/unit/client_fixture.h"

namespace kvtier::testing {
namespace {

class Transfer : public ClientTest {};

// An export reads the tail log of a sequence that is being written; the writer goes on after it.
TEST_F(Transfer, AnExportLeavesTheWriterAlone) {
  const TestShape shape;
  kvt_space* space = open_space(shape);
  kvt_sequence* sequence = create_sequence(space, "live");
  Model model(shape);
  model.append_many(sequence, 1, 2500);  // the second half of the tail
  KVT_ASSERT_OK(kvt_sequence_commit(sequence));
  const std::string file = root_ + "/live.kvx";
  const Json reply = request({{"op", "export"}, {"target", "live"}, {"path", file}});
  EXPECT_EQ(reply.value("tokens", 0u), 2500u) << reply.dump();
  model.append_many(sequence, 5000, 700);
  KVT_EXPECT_OK(kvt_sequence_commit(sequence));
  model.expect_equal(sequence);
  const Json again = request({{"op", "import"}, {"path", file}, {"name", "copy"}});
  EXPECT_EQ(again.value("tokens", 0u), 2500u) << again.dump();
  KVT_EXPECT_OK(kvt_sequence_close(sequence));
  kvt_space_close(space);
}

}  // namespace
}  // namespace kvtier::testing
