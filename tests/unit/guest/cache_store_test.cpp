// SPDX-License-Identifier: Apache-2.0
// The cache example's table, beside a map of the standard library.
#include "guest/examples/cache/store.hpp"
#include "tests/unit/catch.hpp"

#include <cstring>
#include <map>
#include <memory>
#include <random>

namespace {

constexpr std::size_t store_bytes = 1 << 20;

struct alignas(64) Line {
  std::byte bytes[64];
};

// Zeroed memory, aligned as a page is.
class Memory {
 public:
  std::byte* at() { return lines_[0].bytes; }

 private:
  std::unique_ptr<Line[]> lines_ = std::make_unique<Line[]>(store_bytes / sizeof(Line));
};

}  // namespace

TEST_CASE("CacheStore.behaves_as_a_map_does_also_after_it_moved") {
  Memory memory;
  cache::Store store;
  REQUIRE(store.open(memory.at(), store_bytes));
  std::map<std::string, std::string> twin;
  std::mt19937 random(7);
  for (int step = 0; step < 20000; ++step) {
    const std::string key = "k" + std::to_string(random() % 700);
    if (random() % 3 == 0) {
      CHECK(store.erase(key) == (twin.erase(key) == 1));
    } else {
      const std::string value(random() % 300, static_cast<char>('a' + step % 26));
      REQUIRE(store.set(key, value));
      twin[key] = value;
    }
  }
  Memory elsewhere;
  std::memcpy(elsewhere.at(), memory.at(), store_bytes);
  cache::Store moved;
  REQUIRE(moved.open(elsewhere.at(), store_bytes));
  CHECK(moved.size() == twin.size());
  for (const auto& [key, value] : twin) CHECK(moved.get(key) == value);
  CHECK(!moved.get("never written").has_value());
}

TEST_CASE("CacheStore.a_full_table_refuses_and_keeps_what_it_has") {
  Memory memory;
  cache::Store store;
  REQUIRE(store.open(memory.at(), store_bytes));
  std::size_t taken = 0;
  while (store.set("key" + std::to_string(taken), std::string(1000, 'x'))) ++taken;
  CHECK(taken > 100);
  CHECK(store.size() == taken);
  CHECK(store.get("key0") == std::string(1000, 'x'));
  REQUIRE(store.erase("key0"));
  CHECK(store.set("another", std::string(1000, 'y')));
  CHECK(!store.set("", "x"));
  CHECK(!store.set(std::string(251, 'k'), "x"));
}

TEST_CASE("CacheStore.memory_that_is_no_store_is_refused") {
  Memory memory;
  std::memset(memory.at(), 1, 64);
  cache::Store store;
  CHECK(!store.open(memory.at(), store_bytes));
  CHECK(!store.open(Memory().at(), 4096));
}
