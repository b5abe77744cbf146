// Opaque keys: batches in any order, an event to poll, a daemon that dies in between.
#include <poll.h>

#include <fstream>
#include <map>

#include "tests/unit/client_fixture.h"

namespace kvtier::testing {
namespace {

class ObjectsTest : public ClientTest {
 protected:
  // Waits until `count` results are there.
  std::vector<kvt_object_result> collect(std::size_t count) {
    std::vector<kvt_object_result> all;
    for (int i = 0; i < 400 && all.size() < count; ++i) {
      kvt_object_result some[7];
      std::uint32_t n = 0;
      KVT_EXPECT_OK(kvt_objects_poll(client_, some, 7, 50, &n));
      all.insert(all.end(), some, some + n);
    }
    EXPECT_EQ(all.size(), count);
    return all;
  }
  std::uint64_t submit(int verb, std::vector<kvt_object> objects) {
    std::uint64_t batch = 0;
    KVT_EXPECT_OK(kvt_objects_submit(client_, verb, objects.data(),
                                     static_cast<std::uint32_t>(objects.size()), &batch));
    return batch;
  }
  Json request(const Json& body) {
    char* text = nullptr;
    KVT_EXPECT_OK(kvt_client_request(client_, body.dump().c_str(), &text));
    Json reply = text != nullptr ? Json::parse(text) : Json::object();
    kvt_free(text);
    return reply;
  }
  static kvt_object object(const std::string& key, std::string* value) {
    return {key.data(), static_cast<std::uint32_t>(key.size()), 0,
            value != nullptr ? value->data() : nullptr, value != nullptr ? value->size() : 0};
  }
};

TEST_F(ObjectsTest, WhatIsSetIsGot) {
  std::vector<std::string> keys, values, rooms;
  for (std::size_t i = 0; i < 200; ++i) {
    keys.push_back("key-" + std::to_string(i));
    values.push_back(std::string(1 + i * 97, static_cast<char>('a' + i % 26)));
    rooms.push_back(std::string(values.back().size(), '\0'));
  }
  values[7] = rooms[7] = std::string(3u << 20, 'x');
  std::vector<kvt_object> sets, gets;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    sets.push_back(object(keys[i], &values[i]));
    gets.push_back(object(keys[i], &rooms[i]));
  }
  std::uint64_t batch = submit(KVT_OBJECT_SET, sets);
  for (const kvt_object_result& result : collect(200)) {
    EXPECT_EQ(result.status, KVT_OK) << result.index;
    EXPECT_EQ(result.batch, batch);
    EXPECT_EQ(result.value_bytes, values[result.index].size());
  }
  batch = submit(KVT_OBJECT_GET, gets);
  std::map<std::uint32_t, int> seen;
  for (const kvt_object_result& result : collect(200)) {
    EXPECT_EQ(result.status, KVT_OK) << result.index;
    EXPECT_EQ(result.value_bytes, values[result.index].size());
    EXPECT_EQ(++seen[result.index], 1);
  }
  EXPECT_TRUE(rooms == values);

  std::string small(10, '\0');
  submit(KVT_OBJECT_GET, {object(keys[100], &small)});
  const auto too_small = collect(1);
  ASSERT_EQ(too_small.size(), 1u);
  EXPECT_EQ(too_small[0].status, KVT_ERROR_TOO_LARGE);
  EXPECT_EQ(too_small[0].value_bytes, values[100].size());
  submit(KVT_OBJECT_DELETE, {object(keys[100], nullptr), object("never", nullptr)});
  for (const kvt_object_result& result : collect(2))
    EXPECT_EQ(result.status, result.index == 0 ? KVT_OK : KVT_ERROR_MISS);
  submit(KVT_OBJECT_EXISTS, {object(keys[100], nullptr), object(keys[101], nullptr)});
  for (const kvt_object_result& result : collect(2))
    EXPECT_EQ(result.status, result.index == 0 ? KVT_ERROR_MISS : KVT_OK);
}

TEST_F(ObjectsTest, TheEventTellsOfResults) {
  const int event = kvt_objects_event_fd(client_);
  ASSERT_GE(event, 0);
  std::string key = "k", value = "v";
  for (int round = 0; round < 50; ++round) {
    submit(KVT_OBJECT_SET, {object(key, &value)});
    kvt_object_result result{};
    std::uint32_t n = 0;
    for (int i = 0; i < 100 && n == 0; ++i) {
      pollfd watched{event, POLLIN, 0};
      ASSERT_EQ(::poll(&watched, 1, 5000), 1) << "round " << round;
      KVT_ASSERT_OK(kvt_objects_poll(client_, &result, 1, 0, &n));
    }
    ASSERT_EQ(n, 1u);
    EXPECT_EQ(result.status, KVT_OK);
  }
  kvt_object_result none{};
  std::uint32_t n = 1;
  KVT_ASSERT_OK(kvt_objects_poll(client_, &none, 1, 0, &n));
  EXPECT_EQ(n, 0u);
}

TEST_F(ObjectsTest, SurviveTheDaemon) {
  std::string key = "kept", value(100'000, 'q'), room(value.size(), '\0');
  submit(KVT_OBJECT_SET, {object(key, &value)});
  ASSERT_EQ(collect(1).size(), 1u);
  daemon_->kill();
  daemon_->start();
  submit(KVT_OBJECT_GET, {object(key, &room)});
  const auto got = collect(1);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].status, KVT_OK);
  EXPECT_EQ(room, value);
}

TEST_F(ObjectsTest, DamageIsNamedDroppedAndHealed) {
  std::string key = "k", value(10'000, 'v'), other = "o", room(value.size(), '\0');
  submit(KVT_OBJECT_SET, {object(key, &value), object(other, &value)});
  ASSERT_EQ(collect(2).size(), 2u);
  EXPECT_TRUE(request(Json{{"op", "verify"}})["sound"].get<bool>());
  EXPECT_EQ(request(Json{{"op", "verify"}})["objects"], 2);
  std::string path;
  for (const auto& entry : std::filesystem::directory_iterator(root_ + "/store/objects")) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::string head(50, '\0');
    file.read(head.data(), 50);
    if (head[48] == 'k') path = entry.path();
  }
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(4096 + 5000);
  file.put('x');
  file.close();
  submit(KVT_OBJECT_GET, {object(key, &room)});
  EXPECT_EQ(collect(1).at(0).status, KVT_ERROR_MISS);
  EXPECT_EQ(request(Json{{"op", "stats"}})["objects"]["misses"]["checksum"], 1);
  const Json verified = request(Json{{"op", "verify"}});
  EXPECT_FALSE(verified["sound"].get<bool>());
  ASSERT_EQ(verified["problems"].size(), 1u);
  EXPECT_EQ(verified["problems"][0]["region"], "value");
  EXPECT_EQ(request(Json{{"op", "repair"}})["dropped"], 1);
  EXPECT_TRUE(request(Json{{"op", "verify"}})["sound"].get<bool>());
  EXPECT_EQ(request(Json{{"op", "stats"}})["objects"]["count"], 1);
  submit(KVT_OBJECT_SET, {object(key, &value)});
  ASSERT_EQ(collect(1).size(), 1u);
  submit(KVT_OBJECT_GET, {object(key, &room)});
  EXPECT_EQ(collect(1).at(0).status, KVT_OK);
  EXPECT_EQ(room, value);
  EXPECT_EQ(request(Json{{"op", "gc"}, {"objects", true}})["objects_removed"], 2);
  submit(KVT_OBJECT_GET, {object(key, &room)});
  EXPECT_EQ(collect(1).at(0).status, KVT_ERROR_MISS);
}

TEST_F(ObjectsTest, LimitsAreSaid) {
  std::string key(1025, 'k'), value = "v";
  kvt_object bad = object(key, &value);
  std::uint64_t batch = 0;
  EXPECT_EQ(kvt_objects_submit(client_, KVT_OBJECT_SET, &bad, 1, &batch), KVT_ERROR_TOO_LARGE);
  const std::vector<kvt_object> many(257, bad);
  EXPECT_EQ(kvt_objects_submit(client_, KVT_OBJECT_SET, many.data(), 257, &batch),
            KVT_ERROR_TOO_LARGE);
  EXPECT_EQ(kvt_objects_submit(client_, 9, &bad, 1, &batch), KVT_ERROR_INVALID);
}

}  // namespace
}  // namespace kvtier::testing
