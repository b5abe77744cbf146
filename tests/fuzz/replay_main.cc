// Runs a fuzz target without a fuzzer: every file of the given folders, then seeded random
// mutations of them.
//
//   NAME [--mutations N] [--seed N] FOLDER_OR_FILE ...
//
// $KVT_FUZZ_MUTATIONS counts more than the option: tools/check --long sets it.
//
// Links with any LLVMFuzzerTestOneInput. The seed is printed; the same seed replays the same
// inputs. A crash leaves the input in $KVTIER_FUZZ_LAST, if set. Fails where there is no corpus: a
// run without inputs proves nothing.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/random.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
// Whether any input got through to where something was accepted. A target that has it and was never
// there has tested the front door only: the run fails.
extern "C" __attribute__((weak)) int kvt_fuzz_reached();

namespace {

using Input = std::vector<std::uint8_t>;
constexpr std::size_t kInputBytesMax = 1u << 16;

void run_one(const Input& input) {
  if (const char* path = std::getenv("KVTIER_FUZZ_LAST"); path != nullptr) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(input.data()),
               static_cast<std::streamsize>(input.size()));
  }
  // A copy of exactly this size, so that a sanitizer sees every byte too far.
  const Input exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

void mutate_once(Input& input, const std::vector<Input>& corpus, kvtier::Random& random) {
  const auto place = [&] { return static_cast<std::ptrdiff_t>(random.below(input.size() + 1)); };
  const auto byte = static_cast<std::uint8_t>(random.next());
  switch (random.below(7)) {
    case 0:
      if (!input.empty())
        input[random.below(input.size())] ^= static_cast<std::uint8_t>(1u << random.below(8));
      break;
    case 1:
      if (!input.empty())
        input[random.below(input.size())] = random.one_in(3) ? std::uint8_t{0xFF} : byte;
      break;
    case 2:
      input.insert(input.begin() + place(), byte);
      break;
    case 3:
      if (!input.empty())
        input.erase(input.begin() + static_cast<std::ptrdiff_t>(random.below(input.size())));
      break;
    case 4:
      input.resize(static_cast<std::size_t>(place()));
      break;
    case 5: {  // a little-endian number where one may stand
      static constexpr std::uint64_t kNumbers[] = {
          0, 1, 2, 63, 64, 255, 4096, 65535, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, UINT64_MAX};
      const std::uint64_t number =
          kNumbers[random.below(std::size(kNumbers))] + random.below(3) - 1;
      const std::size_t width = std::size_t{1} << random.below(4);
      if (input.size() >= width)
        std::memcpy(input.data() + random.below(input.size() - width + 1), &number, width);
      break;
    }
    default: {  // the rest of another input
      const Input& other = corpus[random.below(corpus.size())];
      input.resize(static_cast<std::size_t>(place()));
      if (other.empty()) break;
      const auto from = static_cast<std::ptrdiff_t>(random.below(other.size()));
      input.insert(input.end(), other.begin() + from, other.end());
      break;
    }
  }
  if (input.size() > kInputBytesMax) input.resize(kInputBytesMax);
}

bool add_file(const std::filesystem::path& path, std::vector<Input>* corpus) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return false;
  corpus->emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  return true;
}

bool add_path(const std::string& path, std::vector<Input>* corpus) {
  if (!std::filesystem::is_directory(path)) return add_file(path, corpus);
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());  // the order of a folder differs between machines
  return std::all_of(files.begin(), files.end(),
                     [&](const auto& file) { return add_file(file, corpus); });
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t mutations = 0;
  std::uint64_t seed = 1;
  std::vector<Input> corpus;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if ((argument == "--mutations" || argument == "--seed") && i + 1 < argc) {
      (argument == "--seed" ? seed : mutations) = std::strtoull(argv[++i], nullptr, 10);
    } else if (!add_path(argument, &corpus)) {
      std::fprintf(stderr, "cannot read %s\n", argument.c_str());
      return 2;
    }
  }
  if (const char* more = std::getenv("KVT_FUZZ_MUTATIONS"); more != nullptr)
    mutations = std::strtoull(more, nullptr, 10);
  if (corpus.empty()) {
    std::fprintf(stderr, "no inputs: give a folder with a corpus\n");
    return 2;
  }
  std::printf("%zu inputs, %llu mutations, seed %llu\n", corpus.size(),
              static_cast<unsigned long long>(mutations), static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  for (const Input& input : corpus) run_one(input);
  kvtier::Random random(seed);
  for (std::uint64_t i = 0; i < mutations; ++i) {
    Input input = corpus[random.below(corpus.size())];
    for (std::uint64_t count = 1 + random.below(6); count > 0; --count)
      mutate_once(input, corpus, random);
    run_one(input);
  }
  if (kvt_fuzz_reached != nullptr && kvt_fuzz_reached() == 0) {
    std::fprintf(stderr, "no input was accepted: the corpus is out of date\n");
    return 1;
  }
  return 0;
}
