// The frame parser: any cut of the stream gives the same messages; broken headers are refused
// before they cost memory.
#include "client/ipc/frame.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <cstring>

#include "base/random.h"

namespace kvtier {
namespace {

std::vector<std::byte> raw_frame(ControlFrameHeader header, std::string_view json,
                                 std::string_view payload) {
  ByteWriter writer;
  writer.write(header);
  writer.write_bytes(as_bytes(json));
  writer.write_bytes(as_bytes(payload));
  return writer.take();
}
std::vector<std::byte> good_frame(std::string_view json, std::string_view payload,
                                  std::uint32_t fd_count = 0) {
  const auto json_bytes = static_cast<std::uint32_t>(json.size());
  const auto payload_bytes = static_cast<std::uint32_t>(payload.size());
  return raw_frame({kControlMagic, json_bytes, payload_bytes, fd_count}, json, payload);
}
std::vector<UniqueFd> some_fds(int count) {
  std::vector<UniqueFd> fds;
  for (int i = 0; i < count; ++i) fds.emplace_back(::eventfd(0, EFD_CLOEXEC));
  return fds;
}
std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
Code feed_code(const std::vector<std::byte>& bytes, const FrameLimits& limits = {}, int fds = 0) {
  FrameParser parser(limits);
  const Result<void> fed = parser.feed(bytes, some_fds(fds));
  return fed ? Code::kOk : fed.error().code;
}

TEST(FrameParser, GivesWhatCame) {
  FrameParser parser;
  ASSERT_TRUE(parser.feed(good_frame(R"({"op":"ls","id":1})", "pay")));
  auto message = parser.next();
  ASSERT_TRUE(message.has_value());
  EXPECT_EQ(message->body["op"], "ls");
  EXPECT_EQ(text_of(message->payload), "pay");
  EXPECT_FALSE(parser.next().has_value());
}

TEST(FrameParser, AnyCutGivesTheSameMessages) {
  std::vector<std::byte> stream;
  for (int i = 0; i < 20; ++i) {
    const std::string payload(static_cast<std::size_t>(i * 7), 'p');
    const auto frame = good_frame(R"({"id":)" + std::to_string(i) + "}", payload);
    stream.insert(stream.end(), frame.begin(), frame.end());
  }
  Random random(11);
  for (int round = 0; round < 200; ++round) {
    FrameParser parser;
    ByteSpan rest(stream);
    int seen = 0;
    while (!rest.empty()) {
      const std::size_t cut =
          std::min<std::size_t>(rest.size(), 1 + random.below(round < 100 ? 3 : 200));
      ASSERT_TRUE(parser.feed(rest.first(cut)));
      rest = rest.subspan(cut);
      while (auto message = parser.next()) {
        EXPECT_EQ(message->body["id"], seen);
        EXPECT_EQ(message->payload.size(), static_cast<std::size_t>(seen * 7));
        ++seen;
      }
    }
    EXPECT_EQ(seen, 20);
  }
}

TEST(FrameParser, RefusesBrokenHeaders) {
  EXPECT_EQ(feed_code(raw_frame({kControlMagic + 1, 2, 0, 0}, "{}", "")), Code::kProtocol);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, 0, 0, 0}, "", "")), Code::kProtocol);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, 1, 0, 0}, "{", "")), Code::kProtocol);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, UINT32_MAX, 0, 0}, "", "")), Code::kTooLarge);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, 2, UINT32_MAX, 0}, "", "")), Code::kTooLarge);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, UINT32_MAX, UINT32_MAX, 0}, "", "")),
            Code::kTooLarge);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, 2, 0, kControlFdsMax + 1}, "", "")),
            Code::kProtocol);
  const auto most =
      static_cast<std::uint32_t>(kControlFrameBytesMax - sizeof(ControlFrameHeader) - 2);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, 2, most, 0}, "", "")), Code::kOk)
      << "exactly at the limit";
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, 2, most + 1, 0}, "", "")), Code::kTooLarge);
}

TEST(FrameParser, RefusesBrokenJson) {
  for (const char* json : {"[]", "{]", "17", "{\"a\":", "\"x\"", "{}{}", "\xff\xfe", "null"})
    EXPECT_EQ(feed_code(good_frame(json, "")), Code::kProtocol) << json;
  const std::string deep = "{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}";
  EXPECT_EQ(feed_code(good_frame(deep, "")), Code::kProtocol);
}

TEST(FrameParser, KeepsToTheDaemonsLimits) {
  const FrameLimits daemon{kRequestJsonBytesMax, 0};
  EXPECT_EQ(feed_code(good_frame("{}", ""), daemon), Code::kOk);
  EXPECT_EQ(feed_code(raw_frame({kControlMagic, kRequestJsonBytesMax + 1, 0, 0}, "", ""), daemon),
            Code::kTooLarge);
  EXPECT_EQ(feed_code(good_frame("{}", "", 1), daemon, 1), Code::kProtocol);
  EXPECT_EQ(feed_code(good_frame("{}", "", 0), daemon, 1), Code::kProtocol);
}

TEST(FrameParser, ExactlyTheDescriptorsThatTheHeaderNames) {
  EXPECT_EQ(feed_code(good_frame("{}", "", 3), {}, 3), Code::kOk);
  EXPECT_EQ(feed_code(good_frame("{}", "", 3), {}, 2), Code::kProtocol);
  EXPECT_EQ(feed_code(good_frame("{}", "", 3), {}, 4), Code::kProtocol);
  EXPECT_EQ(feed_code(good_frame("{}", "", 0), {}, 1), Code::kProtocol);
  // With the first byte alone they may wait for the header to tell.
  FrameParser parser;
  const auto frame = good_frame("{}", "", 2);
  ASSERT_TRUE(parser.feed(ByteSpan(frame).first(1), some_fds(2)));
  ASSERT_TRUE(parser.feed(ByteSpan(frame).subspan(1)));
  EXPECT_EQ(parser.next()->fds.size(), 2u);
  // More than the header says, once it is there.
  FrameParser other;
  ASSERT_TRUE(other.feed(ByteSpan(frame).first(1), some_fds(3)));
  EXPECT_FALSE(other.feed(ByteSpan(frame).subspan(1)));
}

TEST(FrameParser, DescriptorsGoToTheFrameTheyCameWith) {
  // The rest of a frame without, and the beginning of one with, in one receive.
  const auto first = good_frame(R"({"id":1})", "x");
  const auto second = good_frame(R"({"id":2})", "", 1);
  std::vector<std::byte> tail(first.begin() + 5, first.end());
  tail.insert(tail.end(), second.begin(), second.end());
  FrameParser parser;
  ASSERT_TRUE(parser.feed(ByteSpan(first).first(5)));
  ASSERT_TRUE(parser.feed(tail, some_fds(1)));
  EXPECT_TRUE(parser.next()->fds.empty());
  EXPECT_EQ(parser.next()->fds.size(), 1u);
}

TEST(FrameParser, StaysFailedAndKeepsWhatWasWhole) {
  auto stream = good_frame(R"({"id":1})", "");
  const auto bad = good_frame("[]", "");
  stream.insert(stream.end(), bad.begin(), bad.end());
  FrameParser parser;
  EXPECT_EQ(parser.feed(stream).error().code, Code::kProtocol);
  EXPECT_EQ(parser.feed(good_frame("{}", "")).error().code, Code::kProtocol);
  EXPECT_EQ(parser.next()->body["id"], 1);
  EXPECT_FALSE(parser.next().has_value());
}

TEST(FrameWriter, RefusesWhatTheParserWould) {
  FrameWriter writer;
  std::vector<std::byte> payload(kControlFrameBytesMax);
  EXPECT_EQ(writer.enqueue(Json::object(), std::move(payload)).error().code, Code::kTooLarge);
  const std::vector<int> many(kControlFdsMax + 1, 0);
  EXPECT_EQ(writer.enqueue(Json::object(), {}, many).error().code, Code::kTooLarge);
  EXPECT_TRUE(writer.empty());
}

}  // namespace
}  // namespace kvtier
