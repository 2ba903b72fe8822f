// SPDX-License-Identifier: Apache-2.0
//
// One request, start to end, in C++17:
//
//     first [MODEL]
//
// Runs one row of zeros through MODEL (default: digits), and prints its outputs.
//
//     c++ -std=c++17 first.cpp $(pkg-config --cflags --libs gpulet) -o first
#include <gpulet.hpp>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>

int main(int argc, char **argv) try {
  gpulet::Session session;
  const gpulet::Model model =
      session.model(argc > 1 ? argv[1] : "digits", std::chrono::seconds(30));

  gpulet::Request request = model.claim();
  for (std::uint32_t index = 0; index < model.inputs().size(); ++index) {
    const gpulet::Tensor input = request.input(index);
    std::memset(input.data(), 0, input.bytes());
  }
  request.submit(gpulet::Submit().deadline_in(model.slo()));

  const gpulet::Completion answer = session.wait();
  if (answer.status != GPULET_OK) {
    const bool explained = answer.status >= 60 && answer.status < 70;
    throw gpulet::Error(answer.status, explained ? request.error() : std::string());
  }
  for (std::uint32_t index = 0; index < model.outputs().size(); ++index) {
    std::cout << model.outputs()[index].name << ':';
    if (model.outputs()[index].dtype == GPULET_F32) {
      const auto values = request.output<float>(index);
      const std::size_t shown = std::min<std::size_t>(values.size(), 10);
      std::for_each(values.begin(), values.begin() + shown,
                    [](float value) { std::cout << ' ' << value; });
    }
    std::cout << '\n';
  }
  return 0;
} catch (const gpulet::Error &error) {
  std::cerr << "first: " << error.what() << '\n';
  return 1;
}
