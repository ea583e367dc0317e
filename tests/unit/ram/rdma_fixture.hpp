// SPDX-License-Identifier: Apache-2.0
//
// What tests of one side of an RDMA migration share: a connection over a device in memory, and memory to migrate.
#pragma once

#include "ram/ram_map.hpp"
#include "ram/rdma_control.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/rdma_memory_fabric.hpp"

#include <chrono>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

namespace migrationd::testing {

inline const transports::InetAddress place{.host = "memory", .port = "1"};

inline ram::RamMap map_of(std::initializer_list<std::size_t> pages) {
  ram::RamMap map;
  for (const std::size_t count : pages) {
    auto block = ram::RamBlock::create("block" + std::to_string(map.size()), count * ram::page_size, ram::page_size);
    REQUIRE(block.has_value());
    REQUIRE(map.add(std::move(*block)).has_value());
  }
  return map;
}

// Two ends, established.
struct Connection {
  explicit Connection(ram::RdmaPatience patience = {}, unsigned unasked = 0) {
    auto listener = fabric.listen(place).value();
    const ram::RdmaControl::Options options{.unasked = unasked, .patience = patience};
    source = ram::RdmaControl::make(fabric.open(place, *stop, nullptr).value(), *stop, options).value();
    std::thread accepting([&] {
      std::unique_ptr<transports::RdmaLink> link;
      while (!link) link = listener->accept_ready(nullptr).value();
      destination = ram::RdmaControl::make(std::move(link), *stop, {.patience = patience}).value();
      REQUIRE(destination->link().establish(Bytes(8), *stop, std::chrono::seconds(5)).has_value());
    });
    const auto established = source->link().establish(Bytes(8), *stop, std::chrono::seconds(5));
    accepting.join();
    REQUIRE(established.has_value());
  }
  MemoryFabric fabric;
  std::unique_ptr<StopSource> stop = StopSource::make().value();
  std::unique_ptr<ram::RdmaControl> source;
  std::unique_ptr<ram::RdmaControl> destination;
};

inline bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace migrationd::testing
